"""The trust ratio that a description gives for norms: of arrays, or of tensors on their device. Needs no torch.

It is what a replay computes, and what the recorder computes of optimizers that keep their ratio to themselves.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.optimizers.group_description import GroupDescription


class TrustRatios(NamedTuple):
    """What `trust_ratios` computes, each (T, P).

    Attributes:
        ratio: the factor on the rate; 1 where the tensor is not adapted and where a norm is zero.
        divisor: the norm that the optimizer divides by.
        closeness: ‖u + λw‖ / (‖u‖ + λ‖w‖). Where it is small, the identity from which the divisor is computed has lost
            digits; 1 for divisors that need no identity.
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
        group: of kind "trust-ratio".
        weight_norm: ‖w‖, (T, P); a NumPy array, or a torch tensor, on whose device the ratio is computed.
        direction: ‖u‖, u being what ``scaling.direction`` says, (T, P).
        dot: ⟨w, u⟩, (T, P).
        lr: rate of the group, (T, P) or a number.
        decay: λ of each tensor, (P,), as `GroupDescription.decay_of` says.
        adapted: whether each tensor is, (P,), as `GroupDescription.adapts` says.
        updates: number of each update, from 1, (T,); needed for optimizers with a φ.
    """
    s, xp = group.scaling, sys.modules[type(weight_norm).__module__.partition(".")[0]]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # norms of a run that diverged
        total = direction + decay * weight_norm
        decayed = xp.sqrt((direction**2 + 2 * decay * dot + (decay * weight_norm) ** 2).clip(min=0.0))
        divisor = {"decayed": decayed, "sum": total, "grad": direction}[s.divisor]
        divisor = divisor + s.eps if s.eps else divisor
        capped = divisor if s.divisor_cap is None else divisor.clip(max=s.divisor_cap)
        ratio = (weight_norm if s.weight_cap is None else weight_norm.clip(max=s.weight_cap)) / capped
        ratio = _factor(group, updates) * ratio
        # A norm that is NaN makes the ratio NaN; one that is zero makes it 1, which timm clips, too.
        clips_idle = s.idle_without == "gradient"
        idle = ~((weight_norm > 0) & ((direction if clips_idle else divisor) > 0) | xp.isnan(divisor))
        ratio = ratio if clips_idle else _clipped(xp, ratio, lr, s.clip)
        ratio = xp.where(idle, 1.0, ratio)
        ratio = _clipped(xp, ratio, lr, s.clip) if clips_idle else ratio
        ratio = xp.where(adapted | xp.isnan(divisor), ratio, 1.0)
        closeness = xp.where(total > 0, decayed / total, 1.0) if s.divisor == "decayed" else xp.ones_like(total)
    return TrustRatios(ratio, divisor, closeness)


def _factor(group: GroupDescription, updates: NDArray[np.int64] | None) -> Any:
    """eta·φ_t, (T, 1), or a number where there is no φ."""
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
    if isinstance(lr, float | int):
        return (ratio / lr).clip(max=1.0) if lr > 0 else xp.ones_like(ratio)
    return xp.where(lr > 0, ratio / lr, 1.0).clip(max=1.0)
