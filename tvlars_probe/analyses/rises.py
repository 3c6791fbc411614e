"""Where one tensor's norm or ratio rises beyond its usual level, and comes back; `explosions` says what counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.grid import median_of
from tvlars_probe.analyses.spans import settled_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.course import Course

    Flags = NDArray[np.bool_]

LATELY, SHARE = 20, 0.8
"""A rise is sudden beside the value that this share of the last values, so many of them, don't exceed.

The gradients of sound networks were seen to grow by up to 1.6 a step at first, for three or four steps, and late in
training to differ tenfold from batch to batch.
"""


@dataclass(frozen=True, eq=False)
class Series:
    """One tensor in the recorded steps that have a row of it, (N,).

    Attributes:
        rows: their indices among all recorded steps.
        steps: all recorded steps, (T,).
        x: the quantity.
        broken: where it isn't finite.
        harmed: where the loss was harmed.
        start: x_0; NaN where there is none.
        end: number of recorded steps before the run, or this tensor, was lost for good; T where neither was.
        factor: how many times its usual level counts as an explosion.
    """

    rows: NDArray[np.int64]
    steps: NDArray[np.int64]
    x: NDArray[np.float64]
    broken: Flags
    harmed: Flags
    start: float
    end: int
    factor: float

    @classmethod
    def of(
        cls, values: NDArray[np.floating], broken: Flags, steps: NDArray[np.int64], course: Course, factor: float
    ) -> Series:
        """Take the rows of one tensor out of its column.

        Args:
            values: the quantity in the recorded steps; NaN where it is missing.
            broken: where it isn't finite although it was recorded.
            steps: the recorded steps.
            course: how the run went.
            factor: how many times its usual level counts as an explosion.
        """
        rows = np.flatnonzero(~np.isnan(values) | broken)
        x, bad = values[rows].astype(np.float64), broken[rows]
        levels = x[np.isfinite(x) & (x > 0)]
        end = len(steps) if course.until is None else course.until
        if bad.any() and bad[-1]:
            sound = np.flatnonzero(~bad)
            end = min(end, int(rows[sound[-1]]) + 1 if len(sound) else 0)
        return cls(
            rows=rows,
            steps=steps,
            x=x,
            broken=bad,
            harmed=course.harmed[rows] if len(course.harmed) else np.zeros(len(rows), bool),
            start=float(levels[0]) if len(levels) else np.nan,
            end=end,
            factor=factor,
        )

    def explosion(self, settled: float, only: Flags | None) -> tuple[float, int | None]:
        """m, and the place of the explosion's first step among this tensor's; None where none counts.

        Args:
            settled: share of the updates after which a run counts as settled.
            only: stretches without such a recorded step don't count, (T,); by default all may.
        """
        is_lost = self.end < len(self.steps)
        # Of a run or a tensor that was lost for good, m is the median of what came before.
        part = self.rows < self.end if is_lost else self.rows >= settled_from(self.steps, settled)
        median = level_of(self.x[part])
        first = self.first(median, only)
        # What doesn't come back has no level after it either: the median before it may date it earlier.
        while first is not None and self.back(median, first) is None:
            before = level_of(self.x[:first])
            if not before < median:
                break
            median, first = before, self.first(before, only)
        return median, first

    def over(self, median: float) -> Flags:
        """Where x is beyond the usual level. A missing level is beyond nothing."""
        with np.errstate(invalid="ignore"):
            found: Flags = self.broken | (self.x > self.factor * np.fmax(self.start, median))
        return found

    def first(self, median: float, only: Flags | None) -> int | None:
        """Place of the explosion's first step, among this tensor's; None where none counts."""
        over = self.over(median)
        if not over.any():
            return None
        marked = over & self.broken
        marked[self._sudden(np.flatnonzero(over & ~self.broken))] = True
        begins, ends = np.flatnonzero(np.diff(np.concatenate([[False], over, [False]]))).reshape(-1, 2).T
        counts = _any(marked | self.harmed, begins, ends) | (ends == len(over))
        if only is not None:
            counts &= _any(only[self.rows], begins, ends)
        if not counts.any():
            return None
        begin, end = begins[counts.argmax()], ends[counts.argmax()]
        # argmax is 0 where nothing in the stretch is marked: it then begins where it leaves the usual level.
        return int(begin + marked[begin:end].argmax())

    def _sudden(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the places at which x is beyond factor times what it was before."""
        # At first it takes three values, or all updates: of two that lie far apart, what is in between isn't known.
        at = self.steps[self.rows]
        places = places[places >= np.minimum(at[places] - at[0], 3)]
        with np.errstate(invalid="ignore"):
            places = places[self.x[places] > self.factor * _lately(self.x, places)]
            found: NDArray[np.int64] = places[self.x[places] > self.factor * _before(self.x, places)]
        return found

    def peak(self, first: int) -> int:
        """Place of the highest value from ``first`` on; one that isn't finite is the highest."""
        return first + int(np.where(self.broken, np.inf, self.x)[first:].argmax())

    def back(self, median: float, first: int) -> int | None:
        """Place of the first value after the peak of an explosion that is back; None where none is."""
        after = self.peak(first) + 1
        over = self.over(median)[after:]
        return None if over.all() else after + int(over.argmin())


def level_of(x: NDArray[np.float64]) -> float:
    """The median of the finite values above zero; NaN where there are none."""
    return median_of(x[np.isfinite(x) & (x > 0)])


def first_of(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each column's first value that isn't NaN; NaN where there is none."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    first: NDArray[np.float64] = values[(~np.isnan(values)).argmax(axis=0), np.arange(values.shape[1])].astype(float)
    return first


def _any(flags: Flags, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Flags:
    """Whether a flag is set in each stretch."""
    count = np.concatenate([[0], np.cumsum(flags)])
    found: Flags = count[ends] > count[begins]
    return found


def _lately(x: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each place, what `SHARE` of the `LATELY` values before it don't exceed, zeros left out; 0 where none is."""
    before = places[:, None] - np.arange(1, LATELY + 1)
    values = np.where(before >= 0, x[np.maximum(before, 0)], np.nan)
    values[~(np.isfinite(values) & (values > 0))] = np.nan
    values.sort(axis=1)  # NaN goes last
    count = (~np.isnan(values)).sum(axis=1)
    lately = values[np.arange(len(places)), (SHARE * np.maximum(count - 1, 0)).astype(int)]
    return np.where(count > 0, lately, 0.0)


def _before(x: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each place, the median of the first 2ᵏ values, the highest such number that precede it; 0 where none does."""
    sizes = [1 << (int(place).bit_length() - 1) if place else 0 for place in places]
    medians = {size: level_of(x[:size]) for size in {*sizes}}
    before = np.array([medians[size] for size in sizes], np.float64)
    return np.where(np.isnan(before), 0.0, before)
