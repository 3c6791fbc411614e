"""The trust ratio that follows from norms by a description, for NumPy arrays and for torch tensors. Needs no torch.

A replay computes it, and so does the recorder for optimizers that don't leave their own ratio behind.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.optimizers.group_description import GroupDescription


class TrustRatios(NamedTuple):
    """The results of `trust_ratios`, each of shape (T, P).

    Attributes:
        ratio: the factor on the rate; 1 where the tensor is not adapted and where a norm is zero.
        divisor: the norm that the optimizer divides by, with eps and before any clamp.
        closeness: ‖u + λw‖ / (‖u‖ + λ‖w‖). Where it is small, the identity that gives the divisor has lost digits. It
            is 1 for divisors that need no identity.
    """

    ratio: Any
    divisor: Any
    closeness: Any


def trust_ratios(
    group: GroupDescription,
    *,
    weight_norm: Any,
    direction: Any,
    dot: Any,
    lr: Any,
    decay: Any,
    adapted: Any,
    updates: NDArray[np.int64] | None = None,
) -> TrustRatios:
    """Compute the ratio of every step (T) and tensor (P) from ‖u + λw‖² = ‖u‖² + 2λ⟨w, u⟩ + λ²‖w‖².

    Args:
        group: a description whose ``scaling.kind`` is "trust-ratio".
        weight_norm: ‖w‖, (T, P); a NumPy array, or a torch tensor, on whose device the ratio is computed.
        direction: ‖u‖ of the u that ``scaling.direction`` names, (T, P).
        dot: ⟨w, u⟩, (T, P).
        lr: learning rate of the group, (T, P) or a number.
        decay: λ of each tensor, (P,), from `GroupDescription.decay_of`.
        adapted: whether each tensor is adapted, (P,), from `GroupDescription.adapts`.
        updates: number of each update, counted from 1, (T,); needed for optimizers with φ.
    """
    # The module that made the norms computes with them: torch is found here only if the caller has imported it.
    s, xp = group.scaling, sys.modules[type(weight_norm).__module__.partition(".")[0]]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # norms of a run that diverged
        total = direction + decay * weight_norm
        # In units of ‖u‖ + λ‖w‖, whose square may lie outside the numbers' range.
        unit = xp.where((total > 0) & xp.isfinite(total), total, 1.0)
        u, w, product = direction / unit, decay * weight_norm / unit, decay * (dot / unit) / unit
        # A product beyond the range doesn't tell the sum of vectors whose norms are known.
        product = xp.where(xp.isinf(dot) & xp.isfinite(total), np.nan, product)
        # Rounding can make the square negative where u ≈ −λw; ``closeness`` flags such entries.
        decayed = xp.where(w == 0, direction, unit * xp.sqrt((u**2 + 2 * product + w**2).clip(min=0.0)))
        divisor = {"decayed": decayed, "sum": total, "grad": direction}[s.divisor]
        divisor = divisor + s.eps if s.eps else divisor
        capped = divisor if s.divisor_cap is None else divisor.clip(max=s.divisor_cap)
        ratio = (weight_norm if s.weight_cap is None else weight_norm.clip(max=s.weight_cap)) / capped
        ratio = _factor(group, updates) * ratio
        # A zero norm makes the ratio 1, which timm clips, too. A NaN divisor makes it NaN, adapted or not.
        clips_idle = s.idle_without == "gradient"
        idle = ~((weight_norm > 0) & ((direction if clips_idle else divisor) > 0) | xp.isnan(divisor))
        ratio = ratio if clips_idle else _clipped(xp, ratio, lr, s.clip)
        ratio = xp.where(idle, 1.0, ratio)
        ratio = _clipped(xp, ratio, lr, s.clip) if clips_idle else ratio
        ratio = xp.where(adapted | xp.isnan(divisor), ratio, 1.0)
        closeness = xp.where(total > 0, decayed / total, 1.0) if s.divisor == "decayed" else xp.ones_like(total)
    return TrustRatios(ratio, divisor, closeness)


def _factor(group: GroupDescription, updates: NDArray[np.int64] | None) -> Any:
    """eta·φ_t of each update, (T, 1); without φ the number eta."""
    if group.scaling.phi is None:
        return group.scaling.eta
    assert updates is not None, "φ depends on the number of the update"
    phi = np.array([group.scaling.phi.at(float(t)) for t in updates])
    return group.scaling.eta * phi[:, None]


def _clipped(xp: Any, ratio: Any, lr: Any, clip: str) -> Any:
    if clip == "none":
        return ratio
    if clip == "one":
        return ratio.clip(max=1.0)
    # LARC divides by lr; at lr = 0, where a schedule may start or end, the ratio is 1.
    if isinstance(lr, float | int):
        return (ratio / lr).clip(max=1.0) if lr > 0 else xp.ones_like(ratio)
    return xp.where(lr > 0, ratio / lr, 1.0).clip(max=1.0)
