"""Layer-wise optimizers as settings that can be replayed: their descriptions give the trust ratio without a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.optimizers.description_words import DENOMINATORS, EXCLUSIONS
from tvlars_probe.optimizers.group_entries import from_entry, registered_name
from tvlars_probe.optimizers.registry import LAYERWISE, OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.optimizers.group_description import GroupDescription


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of a layer-wise optimizer, named as in `tvlars_probe.LARS`, `TVLARS`, `LAMB` and `NLAMB`.

    Attributes:
        optimizer: one of `LAYERWISE`.
        eta: trust coefficient (lars, tvlars).
        weight_decay: λ of the direction.
        denominator: decayed ‖g + λw‖, sum ‖g‖ + λ‖w‖, or grad ‖g‖ (lars, tvlars).
        exclusion: ndim, or undecayed (lars, tvlars).
        trust_clip: q ← min(q/lr, 1) (lars, tvlars), min(q, 1) (lamb, nlamb).
        adam: lamb and nlamb without their ratio.
        weight_decay_filter: leave tensors of at most one dimension out of the decay.
        lars_adaptation_filter: leave them out of the adaptation.
        lmbda: TVLARS' λ, per update.
        alpha: TVLARS' α.
        delay: TVLARS' d_e, in updates.
        gamma_min: TVLARS' γ_min.

    Raises:
        UserError: a setting is unknown or outside its range.
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
        for name, known in (("optimizer", LAYERWISE), ("denominator", DENOMINATORS), ("exclusion", EXCLUSIONS)):
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
        """The settings of a run's parameter group, as an entry of the manifest tells them.

        Args:
            group: the manifest's entry.
            optimizer: which optimizer is to be replayed; by default the group's own, or lars where that isn't
                layer-wise. Another optimizer takes the settings that it shares with the group's own.
        """
        own = registered_name(group)
        chosen = optimizer or (own if own in LAYERWISE else "lars")
        description = from_entry(group)
        # Older entries hold any optimizer's ``alpha`` among the settings of φ, RMSprop's too.
        phi = (group.get("phi") or {}) if description.scaling.phi is not None else {}
        told = {**(group.get("variant") or {}), **phi}
        told |= {name: group[name] for name in ("eta", "weight_decay") if group.get(name) is not None}
        entry = OPTIMIZERS[chosen]
        if own != chosen and description.scaling.direction != entry.describe({}).scaling.direction:
            # The two families share their weight decay alone. Which tensors are adapted and decayed differs, too: LAMB
            # takes all by default, LARS and TVLARS as `train` builds them leave out biases and normalisation.
            told = {name: told[name] for name in ("weight_decay",) if name in told}
            fixed = dict(entry.fixed)
            told |= {name: fixed.get(name, False) for name in ("weight_decay_filter", "lars_adaptation_filter")}
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{**{name: value for name, value in told.items() if name in known}, "optimizer": chosen})

    def with_settings(self, given: Mapping[str, Any]) -> Variant:
        """This variant with other settings. Settings that its optimizer doesn't take are passed over."""
        taken = {name: value for name, value in given.items() if self.optimizer in takers(name)}
        return dataclasses.replace(self, **taken)

    @property
    def description(self) -> GroupDescription:
        """What an optimizer with these settings does to a parameter group."""
        return OPTIMIZERS[self.optimizer].describe(dataclasses.asdict(self))


def takers(setting: str) -> tuple[str, ...]:
    """The layer-wise optimizers on which a setting has an effect; a setting that no entry names has one on all."""
    own = tuple(name for name in LAYERWISE if setting in OPTIMIZERS[name].settings)
    return own or LAYERWISE
