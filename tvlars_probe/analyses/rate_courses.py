"""The learning rate of each tensor's parameter group over a phase: its peak, and the warm-up that leads to it.

The groups of a run may differ in rate and in schedule, as those of several optimizers do, and a group may join later.
So each tensor is measured by the peak of its own group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

AT_PEAK = 0.999
"""A rate of at least this share of its group's peak has reached it."""

_ROUNDING = 1e-6
"""Relative difference within which two rates are equal: the trace holds them in float32."""


@dataclass(frozen=True, eq=False)
class RateCourses:
    """What the learning rates on record tell of each tensor's parameter group.

    Attributes:
        main_peak: the first group's highest rate; NaN where none is on record.
        peaks: the group's highest rate, (P,); 0 where its rate is always 0, NaN where none is on record.
        begins: the first row in which the group has a rate, (P,).
        reached: the row in which the rate first reaches its peak, see `AT_PEAK`; T where the trace ends before, (P,).
        follows: whether the rate is the same share of the first group's in every step that tells both, (P,).
    """

    main_peak: float
    peaks: Floats
    begins: Indices
    reached: Indices
    follows: NDArray[np.bool_]

    def block(self, columns: slice) -> RateCourses:
        """Those of some of the tensors."""
        parts = (self.peaks, self.begins, self.reached, self.follows)
        return RateCourses(self.main_peak, *(part[columns] for part in parts))  # type: ignore[arg-type]

    def before_peak(self, rows: int) -> NDArray[np.bool_]:
        """Which of the T = ``rows`` recorded steps belong to the warm-up of each tensor's group, (T, P)."""
        row = np.arange(rows)[:, None]
        inside: NDArray[np.bool_] = (row >= self.begins) & (row < self.reached)
        return inside


def rate_courses(grid: LayerGrid, facts: RunFacts) -> RateCourses:
    """Find the peak and the warm-up of every tensor's group.

    The manifest tells the peak of the first group. Where only some steps are recorded, none of them may reach it; then
    the peaks of all groups that move with the first one lie as much higher.

    Args:
        grid: the column ``lr`` of the table ``layers``; all tensors of the phase, or their groups can't be followed.
        facts: what the run's manifest tells.
    """
    lr = grid["lr"]
    keys = _keys(grid, facts)
    courses: dict[object, Floats] = {}
    # Column by column: a matrix of rates in double precision would be larger than the grid itself.
    for column, key in enumerate(keys):
        rates = lr[:, column].astype(np.float64)
        courses[key] = np.fmax(courses[key], rates) if key in courses else rates
    for column, key in enumerate(keys):
        rates = lr[:, column].astype(np.float64)
        with np.errstate(invalid="ignore"):
            own = np.isnan(rates) | (np.abs(rates - courses[key]) <= _ROUNDING * np.abs(courses[key]))
        # A tensor that has changed its group, or whose group isn't told right, stands for itself.
        if not own.all():
            keys[column] = ("alone", column)
            courses[keys[column]] = rates
    if not keys:
        return RateCourses(np.nan, np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))
    # Where the manifest tells no groups, the first tensor stands for the first one.
    main = next((key for key in keys if key == id(facts.main_group)), keys[0])
    found = {key: _figures(course, courses[main], facts.peak_lr) for key, course in courses.items()}
    peaks, begins, reached = (np.array([found[key][k] for key in keys]) for k in range(3))
    follows = {key: share_of(course, courses[main]) > 0 for key, course in courses.items()}
    return RateCourses(found[main][0], peaks, begins, reached, np.array([follows[key] for key in keys]))


def _keys(grid: LayerGrid, facts: RunFacts) -> list[object]:
    """What tells each tensor's group; a tensor of which the manifest tells none stands for itself."""
    groups = facts.group_of(grid.parameters)
    return [id(group) if group else ("alone", column) for column, group in enumerate(groups)]


def _figures(course: Floats, first: Floats, told: float | None) -> tuple[float, int, int]:
    """The peak of a group's rate, the row in which the rate begins and that in which it reaches the peak.

    Args:
        course: the group's rate in every recorded step, (T,).
        first: that of the first group.
        told: the first group's peak as the manifest tells it.
    """
    there = np.flatnonzero(np.isfinite(course))
    if not len(there):
        return np.nan, 0, 0
    begins, last = int(there[0]), int(there[-1])
    highest = int(there[course[there].argmax()])
    raised = _raised(course, first, told)
    peak = float(course[highest]) if raised is None else raised
    with np.errstate(invalid="ignore"):
        close = np.flatnonzero(course >= AT_PEAK * peak)
    reached = int(close[0]) if len(close) else highest
    # A rate that is highest at the end may still be rising, unless the manifest tells that this was its peak.
    still_rises = begins < last == reached and (raised is None or not len(close))
    return peak, begins, len(course) if still_rises else reached


def _raised(course: Floats, first: Floats, told: float | None) -> float | None:
    """The peak of a group that moves with the first one, whose peak is ``told``; None where it doesn't, or isn't.

    They move together if one rate is the same share of the other in every step, and both are highest in the same one.
    """
    share = share_of(course, first)
    if told is None or not share > 0:
        return None
    top = int(np.nan_to_num(first, nan=-1.0, posinf=-1.0).argmax())
    # A group that joined after the first one's peak has a lower peak of its own.
    if not course[top] >= (1 - _ROUNDING) * np.nanmax(course):
        return None
    raised = float(course[top]) * told / float(first[top])
    # A manifest that tells less than the trace shows is wrong.
    return raised if (1 - _ROUNDING) * course[top] <= raised < np.inf else None


def share_of(course: Floats, first: Floats) -> float:
    """A rate as a share of another one; NaN where it isn't the same in all steps: one schedule doesn't scale both.

    Args:
        course: a rate in every step, (T,); NaN where there is none.
        first: the other one, (T,).
    """
    told = [np.isfinite(rates) for rates in (course, first)]
    if not (told[0].any() and told[1].any()):
        return np.nan
    both = told[0] & told[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if both.any():
            # Of a rate that has all but vanished the digits say nothing.
            both &= first > 1e-6 * first[told[1]].max()
            shares = course[both] / first[both]
        else:
            # No step tells both: the share is only known of rates that never change.
            one, other = course[told[0]], first[told[1]]
            shares = np.array([one.min() / other.max(), one.max() / other.min()])
        return float(np.median(shares)) if len(shares) and np.ptp(shares) <= 1e-5 * shares.max() else np.nan
