"""LARS, TVLARS and LAMB as formulas of norms: the trust ratio a variant gives, without a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.optimizers.phi import phi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OPTIMIZERS = ("lars", "tvlars", "lamb")
DENOMINATORS = ("decayed", "sum", "grad")
EXCLUSIONS = ("ndim", "undecayed")

_OWN = {
    "lars": ("eta", "denominator", "exclusion"),
    "tvlars": ("eta", "denominator", "exclusion", "lmbda", "alpha", "delay", "gamma_min"),
    "lamb": ("adam",),
}
"""Settings that only some optimizers take."""

_CAPS = {"lars": (np.inf, np.inf), "tvlars": (10.0, 10.0), "lamb": (10.0, np.inf)}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A layer-wise optimizer's settings, as in `tvlars_probe.LARS`, `TVLARS` and `LAMB`.

    Attributes:
        optimizer: lars, tvlars or lamb.
        eta: trust coefficient (lars, tvlars).
        weight_decay: λ of the direction.
        denominator: decayed ‖g + λw‖, sum ‖g‖ + λ‖w‖, or grad ‖g‖ (lars, tvlars).
        exclusion: ndim, or undecayed (lars, tvlars).
        trust_clip: q ← min(q/lr, 1) (lars, tvlars), min(q, 1) (lamb).
        adam: lamb without its ratio.
        weight_decay_filter: leave tensors of at most one dimension out of the decay.
        lars_adaptation_filter: leave them out of the adaptation.
        lmbda: TVLARS' λ, per update.
        alpha: TVLARS' α.
        delay: TVLARS' d_e, in updates.
        gamma_min: TVLARS' γ_min.
    """

    optimizer: str = "lars"
    eta: float = 0.001
    weight_decay: float = 5e-4
    denominator: str = "decayed"
    exclusion: str = "ndim"
    trust_clip: bool = False
    adam: bool = False
    weight_decay_filter: bool = True
    lars_adaptation_filter: bool = True
    lmbda: float = 0.001
    alpha: float = 0.1
    delay: float = 0.0
    gamma_min: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("denominator", DENOMINATORS), ("exclusion", EXCLUSIONS)):
            if getattr(self, name) not in known:
                raise unknown(f"--{name}", getattr(self, name), known)
        for name in ("eta", "weight_decay", "lmbda", "gamma_min"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name):g} is outside its range (allowed: 0 or more)"
                )
        if not 0 < self.alpha < np.inf:
            raise UserError(f"--alpha {self.alpha:g} is outside its range (allowed: above 0)")
        if not abs(self.delay) < np.inf:
            raise UserError(f"--delay {self.delay:g} is outside its range (allowed: a number of updates)")

    @classmethod
    def of_group(cls, group: Mapping[str, Any], optimizer: str | None = None) -> Variant:
        """The settings of a run's parameter group; for another ``optimizer`` those that it shares with it."""
        own = str(group.get("optimizer", "")).lower()
        chosen = optimizer or (own if own in OPTIMIZERS else "lars")
        told = {**(group.get("variant") or {}), **(group.get("phi") or {})}
        told |= {name: group[name] for name in ("eta", "weight_decay") if group.get(name) is not None}
        if own != chosen and "lamb" in (own, chosen):
            # LAMB adapts and decays everything by default, LARS and TVLARS as `train` builds them leave biases out.
            told = {name: told[name] for name in ("weight_decay",) if name in told}
            filters = chosen != "lamb"
            told |= {"weight_decay_filter": filters, "lars_adaptation_filter": filters}
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{**{name: value for name, value in told.items() if name in known}, "optimizer": chosen})

    def with_settings(self, given: Mapping[str, Any]) -> Variant:
        """This variant with other settings; those that its optimizer doesn't take are left as they are."""
        taken = {name: value for name, value in given.items() if self.optimizer in takers(name)}
        return dataclasses.replace(self, **taken)

    def phi_at(self, updates: NDArray[np.int64]) -> Floats:
        """φ of the t-th update, counted from 1; 1 for lars and lamb."""
        if self.optimizer != "tvlars":
            return np.ones(len(updates))
        settings = {"lmbda": self.lmbda, "alpha": self.alpha, "delay": self.delay, "gamma_min": self.gamma_min}
        return np.array([phi(float(t), **settings) for t in updates])

    def decay_of(self, one_dimensional: NDArray[np.bool_]) -> Floats:
        """Each tensor's weight decay."""
        return np.where(one_dimensional & self.weight_decay_filter, 0.0, self.weight_decay)

    def adapts(self, one_dimensional: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which tensors' rates are scaled."""
        kept = ~(one_dimensional & self.lars_adaptation_filter)
        if self.optimizer == "lamb":
            return kept & (not self.adam)
        return kept & (self.decay_of(one_dimensional) != 0) if self.exclusion == "undecayed" else kept

    def trust_ratio(
        self,
        *,
        weight_norm: Floats,
        direction: Floats,
        dot: Floats,
        lr: Floats,
        updates: NDArray[np.int64],
        one_dimensional: NDArray[np.bool_],
    ) -> tuple[Floats, Floats]:
        """The ratio for every step (T) and tensor (P), and how far ‖u + λw‖ is from cancelling.

        Args:
            weight_norm: ‖w‖, (T, P).
            direction: ‖u‖, u the gradient or LAMB's Adam direction, (T, P).
            dot: ⟨w, u⟩, (T, P).
            lr: rate of the group, (T, P).
            updates: number of each update, from 1, (T,).
            one_dimensional: which tensors have at most one dimension, (P,).

        Returns:
            the trust ratio, and ‖u + λw‖ / (‖u‖ + λ‖w‖): where this is small the identity from which it is computed,
            ‖u + λw‖² = ‖u‖² + 2λ⟨w, u⟩ + λ²‖w‖², has lost digits.
        """
        decay = self.decay_of(one_dimensional)
        kind = "decayed" if self.optimizer == "lamb" else self.denominator
        caps = _CAPS[self.optimizer]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # norms of a run that diverged
            total = direction + decay * weight_norm
            decayed = np.sqrt(np.maximum(direction**2 + 2 * decay * dot + (decay * weight_norm) ** 2, 0.0))
            norm = {"decayed": decayed, "sum": total, "grad": direction}[kind]
            ratio = np.minimum(weight_norm, caps[0]) / np.minimum(norm, caps[1])
            if self.optimizer != "lamb":
                ratio = self.eta * self.phi_at(updates)[:, None] * ratio
            if self.trust_clip:
                ratio = np.minimum(ratio if self.optimizer == "lamb" else np.where(lr > 0, ratio / lr, 1.0), 1.0)
            applies = self.adapts(one_dimensional) & (weight_norm > 0) & (norm > 0)
            ratio = np.where(applies | np.isnan(norm), ratio, 1.0)
            ratio = np.where(self.adapts(one_dimensional) | np.isnan(norm), ratio, 1.0)
            return ratio, np.where(total > 0, decayed / total, 1.0) if kind == "decayed" else np.ones_like(total)


def takers(setting: str) -> tuple[str, ...]:
    """The optimizers that a setting has an effect on."""
    shared = not any(setting in own for own in _OWN.values())
    return tuple(name for name in OPTIMIZERS if shared or setting in _OWN[name])
