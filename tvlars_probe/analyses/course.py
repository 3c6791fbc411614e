"""How a run went: when its loss was harmed, and whether for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a run went, as far as it bears on its explosions.

    Attributes:
        harmed: whether the loss was harmed in a recorded step, or before the next one, (T,); empty for never.
        until: how many recorded steps come before the loss is harmed for good; None if it isn't.
    """

    harmed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    until: int | None = None

    @classmethod
    def of(cls, recorded: NDArray[np.int64], steps: pd.DataFrame, facts: RunFacts, *, loss_rise: float) -> Course:
        """Read it off the table ``steps`` (columns ``step`` and ``loss``).

        Args:
            recorded: the steps whose layers are recorded, (T,).
            steps: the rows of every update.
            facts: what the run's manifest tells. A loss that is NaN is null in the table; the finding has its step.
            loss_rise: multiple of the first loss from which the loss counts as harmed.
        """
        at, loss = losses_of(steps, facts)
        line = loss_rise * loss[0] if len(loss) and loss[0] > 0 else np.inf
        harmed = ~np.isfinite(loss) | (loss >= line)
        # A step stands for those until the next recorded one: the last row at or before a harmed step is marked.
        rows = np.searchsorted(recorded, at[harmed], side="right") - 1
        marked = np.zeros(len(recorded), bool)
        marked[rows[rows >= 0]] = True
        if not len(harmed) or not harmed[-1]:
            return cls(harmed=marked)
        sound = np.flatnonzero(~harmed)
        since = at[sound[-1] + 1] if len(sound) else at[0]
        return cls(harmed=marked, until=int(np.searchsorted(recorded, since)))


def losses_of(steps: pd.DataFrame, facts: RunFacts) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The steps with a loss on record, (N,), and the losses, (N,); infinite in the step in which the run was lost.

    Args:
        steps: columns ``step`` and ``loss`` of every update.
        facts: what the run's manifest tells.
    """
    told = steps[steps["loss"].notna()]
    at, loss = told["step"].to_numpy(np.int64), told["loss"].to_numpy(float)
    bad = lost_at(steps, facts)
    if bad is None:
        return at, loss
    there = at == bad
    # A loss that is finite still: a tensor went in this step, and the run diverged.
    loss = np.where(there, np.inf, loss)
    if there.any():
        return at, loss
    place = np.searchsorted(at, bad)
    return np.insert(at, place, bad), np.insert(loss, place, np.inf)


def lost_at(steps: pd.DataFrame, facts: RunFacts) -> int | None:
    """The first of these steps whose loss isn't finite, by the manifest's finding; None where it tells of none.

    Only the finding tells of NaN, which the table ``steps`` holds as null. It may be of another phase, or of a norm in
    a step whose loss is finite. Where the run diverged, the step in which a tensor went first counts.
    """
    step = facts.bad_loss_step
    return step if step is not None and (steps["step"] == step).any() else None
