"""What counts as early, hot, overwritten or exploded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from tvlars_probe.analyses.facts import RunFacts


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the marks. None of them is from a paper; each can be set.

    Attributes:
        explosion: a quantity explodes above this multiple of its usual level; see `tvlars_probe.analyses.explosions`.
        explosion_rise: an explosion of ‖w‖/‖g‖ counts where ‖g‖ or ‖Δw‖/‖w‖ rises above this multiple of its own.
        hot: a layer is hot if its own ratio is above this multiple of its settled value.
        overwrite: an unadapted tensor is overwritten if one step at full rate has a ‖Δw‖/‖w‖ above this.
        early_epochs: number of first epochs that count as early. It is no share of the run: what happened early doesn't
            depend on how long a run goes on. All of a longer warm-up counts as early, except for the rise of the loss.
        early_updates: the same in updates, for a run that doesn't tell its updates per epoch.
        settled: share of the recorded updates after which a run counts as settled.
        persistent: share of the early updates in which a tensor must be overwritten to matter.
        loss_rise: the loss counts as harmed where it reaches this multiple of its first value.

    Raises:
        UserError: a threshold is outside its range.
    """

    explosion: float = 5.0
    explosion_rise: float = 2.0
    hot: float = 2.0
    overwrite: float = 1.0
    early_epochs: float = 5.0
    early_updates: int = 500
    settled: float = 0.5
    persistent: float = 0.05
    loss_rise: float = 1.5

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, is_share = getattr(self, f.name), f.name in ("settled", "persistent")
            if not 0 < value < math.inf or (is_share and value > 1):
                allowed = "above 0, at most 1" if is_share else "above 0"
                raise UserError(f"--{f.name.replace('_', '-')} {value:g} is out of range (allowed: {allowed})")

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The thresholds with some of them set by name.

        Raises:
            UserError: there is no such threshold, or it is no number within its range.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise unknown("threshold", name, known)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"the threshold {name} is a number, got {value!r:.60}")
        return cls(**given)

    def early(self, facts: RunFacts) -> int:
        """Number of first updates that count as early."""
        per_epoch = facts.steps_per_epoch
        return math.ceil(self.early_epochs * per_epoch) if per_epoch else self.early_updates
