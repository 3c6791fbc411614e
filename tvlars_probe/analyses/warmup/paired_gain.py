"""Did warm-up help? The outcome of pairs of runs that differ in warm-up alone, one for each peak rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses.chance import has_learned
from tvlars_probe.analyses.intervals import Mean

if TYPE_CHECKING:
    from collections.abc import Sequence

NEEDED, HARMFUL, NO_DIFFERENCE, UNKNOWN = "needed", "harmful", "made no difference", "unknown"
NEVER_LEARNED = "never learned"
OUTCOMES = (NEEDED, HARMFUL, NO_DIFFERENCE, NEVER_LEARNED, UNKNOWN)

LEAST_GAIN = 0.5
"""A mean gain of fewer points is too small for warm-up to be called needed, or harmful."""

SAME = 1.0
"""An interval within so many points of zero is no difference."""

EQUAL = 1e-6
"""Gains whose standard deviation is no more than so many points are equal but for rounding."""

LEAST_EQUAL = 6
"""Fewest seeds whose gains are all equal that speak for a gain: by a sign test six of one sign are beyond chance."""

SIDES = ("without", "with")


@dataclass(frozen=True, slots=True)
class PairedGain:
    """What warm-up changed at one peak rate.

    Attributes:
        gain: held-out accuracy with warm-up minus the one without, in percentage points: mean over the seeds, with
            Student's 95 % interval.
        outcome: one of `OUTCOMES`. "needed": the interval lies above zero and the mean above `LEAST_GAIN`; "harmful":
            the mirror of that; "made no difference": else, an interval within ± `SAME`; "unknown": everything else,
            fewer than two pairs included. `outcomes_by_cell` also knows "never learned".
    """

    gain: Mean
    outcome: str

    @classmethod
    def of(cls, gains: Sequence[float]) -> PairedGain:
        """The outcome of the pairs' gains, one per seed."""
        gain = Mean.of(gains)
        low, high = gain.value - gain.half_width, gain.value + gain.half_width
        # Accuracies are shares of a finite test set: a few gains that are equal by chance have no scatter to judge by.
        scatters = gain.deviation > EQUAL or gain.count >= LEAST_EQUAL
        if scatters and low > 0 and gain.value > LEAST_GAIN:
            return cls(gain, NEEDED)
        if scatters and high < 0 and gain.value < -LEAST_GAIN:
            return cls(gain, HARMFUL)
        return cls(gain, NO_DIFFERENCE if low >= -SAME and high <= SAME else UNKNOWN)


def outcomes_by_cell(pairs: pd.DataFrame, cell: Sequence[str]) -> pd.DataFrame:
    """What warm-up changed in each cell, by `PairedGain` over its seeds.

    Args:
        pairs: a row per pair of runs with the columns ``cell``, ``seed``, ``chance`` (the accuracy of equal guesses in
            percent, null where it isn't known), ``gain``, and ``accuracy_...`` and ``diverged_...`` of both `SIDES`.
        cell: columns that the pairs of a cell have in common; the peak rate is one of them.

    Returns:
        a row per cell: its columns, ``seeds``; ``without`` and ``with``, the mean accuracies over seeds; ``gain``,
        ``low`` and ``high``, the mean gain with its 95 % interval in percentage points; ``outcome``, which is "never
        learned" where neither side's mean accuracy is that of `has_learned`; ``diverged_without`` and
        ``diverged_with``, which count runs.
    """
    cells = []
    for key, some in pairs.groupby(list(cell), dropna=False, sort=True):
        # Pairs of one seed are no independent draws: they are averaged before the interval is taken. All means are over
        # the pairs that have a gain, so that they differ by it; where none has, over what there is.
        told = some[some["gain"].notna()] if some["gain"].notna().any() else some
        by_seed = told.groupby("seed", dropna=False)[["gain", *(f"accuracy_{side}" for side in SIDES)]].mean()
        found = PairedGain.of(by_seed["gain"].tolist())
        means = {side: float(by_seed[f"accuracy_{side}"].mean()) for side in SIDES}
        chance = float(some["chance"].iloc[0])
        # False where an accuracy or chance is NaN: of what wasn't measured nobody can say that it learned nothing.
        dead = all(mean >= 0 and chance > 0 and not has_learned(mean, chance) for mean in means.values())
        cells.append(
            {
                **dict(zip(cell, key, strict=True)),
                "seeds": found.gain.count,
                **means,
                "gain": found.gain.value,
                "low": found.gain.value - found.gain.half_width,
                "high": found.gain.value + found.gain.half_width,
                "outcome": NEVER_LEARNED if dead else found.outcome,
                **{f"diverged_{side}": int(some[f"diverged_{side}"].sum()) for side in SIDES},
            }
        )
    return pd.DataFrame(cells)
