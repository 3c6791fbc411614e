"""The warm-up of each tensor's parameter group in updates, also where only every n-th step is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.rate_courses import AT_PEAK

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from tvlars_probe.analyses.rate_courses import RateCourses


@dataclass(frozen=True, eq=False)
class WarmupLengths:
    """When the rate of each tensor's group begins, and how long it takes to its peak.

    Attributes:
        first: the phase's first update; its layers may not be on record.
        begins: the update with which the group begins, (P,).
        lengths: updates from there until its rate first reaches its peak; NaN where the trace ends before, or tells no
            rate, (P,).
    """

    first: int
    begins: NDArray[np.int64]
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, recorded: NDArray[np.int64], steps: pd.DataFrame, courses: RateCourses) -> WarmupLengths:
        """Measure every group.

        Args:
            recorded: the steps whose layers are recorded, (T,).
            steps: the rows of every update. The first group's rate, ``lr``, tells where between recorded steps the
                peak of each group is that follows it.
            courses: the rates of the tensors' groups.
        """
        first = int(min([*recorded[:1], *steps["step"][:1]], default=0))
        count = len(courses.peaks)
        if not len(recorded):
            return cls(first, np.full(count, first), np.full(count, np.nan))
        begins = np.where(courses.begins > 0, recorded[courses.begins], first)
        groups = list(zip(courses.begins.tolist(), courses.reached.tolist(), courses.follows.tolist(), strict=True))
        peak_steps = {
            (begin, row, follows): _peak_step(recorded, begin, row, steps if follows else steps[:0], first)
            for begin, row, follows in set(groups)
        }
        lengths = np.array([peak_steps[group] for group in groups], dtype=np.float64) - begins
        return cls(first, begins, np.where(np.isnan(courses.peaks), np.nan, lengths))

    def block(self, columns: slice) -> WarmupLengths:
        """Those of some of the tensors."""
        return WarmupLengths(self.first, self.begins[columns], self.lengths[columns])

    def of_run(self, recorded: NDArray[np.int64], courses: RateCourses, early: int) -> tuple[int | None, int]:
        """Length of the warm-up, that of the group that takes longest, and the last step that counts as early.

        The length is None where no layers are on record, or where the rate of a group doesn't reach its peak. Groups
        without a rate, and those that join only after the first ``early`` updates, tell nothing of the run's beginning
        and are passed over.
        """
        counted = (courses.peaks > 0) & (self.begins < self.first + early)
        lengths, row = self.lengths[counted], int(courses.reached[counted].max(initial=0))
        last = max(self.first + early - 1, int(recorded[row - 1]) if row else 0)
        if row == len(recorded):
            return None, last
        end = int((self.begins[counted] + lengths).max(initial=0))
        return int(lengths.max(initial=0)), max(last, end - 1)


def _peak_step(recorded: NDArray[np.int64], begin: int, row: int, steps: pd.DataFrame, first: int) -> float:
    """The update in which a group's rate reaches its peak; NaN if the trace ends before.

    Args:
        recorded: the steps whose layers are recorded, (T,).
        begin: the first row of them in which the group has a rate.
        row: the one in which its rate is seen at its peak.
        steps: the rows of every update if these tell its rate; none if they don't.
        first: the phase's first update.
    """
    if row == len(recorded):
        return np.nan
    if 0 < begin == row:
        return float(recorded[row])
    before = int(recorded[row - 1]) if row else first
    after = int(recorded[row + 1]) if row + 1 < len(recorded) else int(recorded[row]) + 1
    near = steps[(steps["step"] >= before) & (steps["step"] < after)]
    rate = near["lr"].to_numpy(float) if "lr" in near else np.zeros(0)
    there = rate >= AT_PEAK * np.fmax.reduce(rate, initial=-np.inf)
    # At the recorded step before the peak the rate is lower, unless the layers and the updates tell different rates.
    told = there.any() and (not there[0] or (not row and near["step"].iloc[0] == first))
    return float(near["step"].to_numpy()[there.argmax()] if told else recorded[row])
