"""When did a norm or a ratio of norms explode, in which tensors, and for how long?

A tensor *explodes* where a quantity x rises beyond ``factor`` times its usual level, and that is more than learning
does by itself. The usual level is the larger one of its first value x_0 and its *later median* m, over the recorded
steps that follow the share ``settled`` of all updates. Both are needed: a gradient that only shrinks from its initial
size has exploded at no time, however small it ends. A tensor that starts beyond factor·m shows in
``start_over_median`` instead. Zeros tell no level: x_0 is the first value above zero, and m is of such values.

Gradients rise tenfold and more while a sound network begins to learn, stay there for a while, and shrink with the loss;
updates rise and fall with the schedule. A stretch of steps beyond the usual level therefore counts only if one of these
holds in it:

- the rise is *sudden*: x is beyond factor times what it was before, that is, the value which four fifths of its last 20
  values don't exceed, and the median of its first 2ᵏ values, as many as there were before;
- the loss is *harmed*: not finite, or beyond ``loss_rise`` times its first value;
- x isn't finite, or doesn't come back while it is recorded.

The explosion's first step is the first sudden one, or else the first of the stretch.

A run that diverges has no settled part. There m is the median over what came before: before the loss was harmed for
good, or the tensor stopped being finite for good, and in any case before an explosion that doesn't come back.

‖w‖/‖g‖ alone says little: it rises where the gradient shrinks, as it does in every run that learns well. Its explosion
counts only if ‖g‖ or ‖Δw‖/‖w‖ of the same tensor rises in the same stretch, beyond ``rise`` times its own usual level.
A gradient of zero has no ratio.

The papers speak of the explosion of the layer-wise norm ratio in the initial phase (arXiv:2309.14053, section 3)
without a threshold; all thresholds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses.course import Course
from tvlars_probe.analyses.grid import column_medians, norm_ratio
from tvlars_probe.analyses.rises import Series, first_of
from tvlars_probe.analyses.spans import settled_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.grid import LayerGrid, Matrix

    Flags = NDArray[np.bool_]

QUANTITIES = {
    "lnr": "layer-wise norm ratio ‖w‖/‖g‖",
    "grad_norm": "gradient norm ‖g‖",
    "update_ratio": "update-to-weight ratio ‖Δw‖/‖w‖",
}
"""Quantities that are searched for explosions: the name in tables, and what it stands for."""

COLUMNS = (
    "quantity", "parameter", "exploded", "first_step", "peak_step", "peak", "later_median", "peak_over_median",
    "start_over_median", "recovery_steps",
)  # fmt: skip
"""Columns of the table of explosions."""

_TYPES = {"quantity": "object", "parameter": "object", "exploded": "bool"}
"""Data types of the columns that aren't float64, for a table without rows."""


def explosions_of(
    grid: LayerGrid, course: Course, *, factor: float = 5.0, settled: float = 0.5, rise: float = 2.0
) -> pd.DataFrame:
    """The tables of `find_explosions` for each of `QUANTITIES`, one below the other.

    Args:
        grid: the columns ``weight_norm``, ``grad_norm``, ``update_norm`` and ``lr`` of ``layers``.
        course: how the run went.
        factor: how many times its usual level a quantity must reach.
        settled: share of the recorded steps after which a run counts as settled.
        rise: how many times its usual level ‖g‖ or ‖Δw‖/‖w‖ must reach where an explosion of ‖w‖/‖g‖ counts.
    """
    weight, grad, update = grid["weight_norm"], grid["grad_norm"], grid["update_norm"]
    # What is missing is NaN, too, but has no rate either: where there is one, a norm that is NaN was recorded as such.
    broken = np.isfinite(grid["lr"]) & ~(np.isfinite(weight) & np.isfinite(grad))
    lost = np.isposinf(update) | (np.isnan(update) & broken)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(grad == 0, np.nan, norm_ratio(grid))
        relative = update / np.where(weight > 0, weight, np.nan)
    how = {"course": course, "factor": factor, "settled": settled}
    found: dict[str, _Found] = {}
    for name, values, bad in (("grad_norm", grad, broken), ("update_ratio", relative, lost)):
        found[name] = _search(values, grid.steps, broken=bad, **how)  # type: ignore[arg-type]
    with np.errstate(invalid="ignore"):
        rising = broken | lost | (grad > rise * found["grad_norm"].level)
        rising |= relative > rise * found["update_ratio"].level
    found["lnr"] = _search(ratio, grid.steps, broken=broken, only=rising, **how)  # type: ignore[arg-type]
    tables = [found[name].table(name, grid.steps, grid.parameters) for name in QUANTITIES]
    return pd.concat(tables, ignore_index=True)


def find_explosions(
    quantity: str,
    values: Matrix,
    steps: NDArray[np.int64],
    parameters: tuple[str, ...],
    *,
    factor: float = 5.0,
    settled: float = 0.5,
    course: Course | None = None,
) -> pd.DataFrame:
    """Date the explosions of one quantity, a row per tensor; the module's docstring defines them.

    ``recovery_steps`` counts from the explosion's first step to the first recorded step after its peak that is back at
    or below the threshold. It is null if there is no such step.

    Args:
        quantity: name of the quantity, for the table.
        values: the quantity at each recorded step and tensor, (T, P); NaN where there is no row.
        steps: the recorded steps, ascending, (T,).
        parameters: names of the tensors, (P,).
        factor: how many times its usual level counts as an explosion.
        settled: share of the recorded steps after which a run counts as settled.
        course: how the run went; by default nothing is known of that.

    Returns:
        The columns `COLUMNS`, a row per tensor, exploded or not. ``later_median`` is m; ``peak`` is the highest value,
        of those since the explosion's first step where there is one.
    """
    broken, how = np.isposinf(values), course or Course()
    found = _search(values, steps, broken=broken, course=how, factor=factor, settled=settled)
    return found.table(quantity, steps, parameters)


@dataclass(frozen=True, eq=False)
class _Found:
    """What a search found, per tensor (P,). Rows are indices of recorded steps; −1 where there is none.

    Attributes:
        start: the first finite value, zero included.
        median: m.
        level: the usual level.
        first: row of the explosion's first step.
        peak_row: row of the highest value.
        peak: that value.
        back: row of the first step after the peak that is back.
    """

    start: NDArray[np.float64]
    median: NDArray[np.float64]
    level: NDArray[np.float64]
    first: NDArray[np.int64]
    peak_row: NDArray[np.int64]
    peak: NDArray[np.float64]
    back: NDArray[np.int64]

    @classmethod
    def of(cls, values: Matrix, median: NDArray[np.float64], level: NDArray[np.float64]) -> _Found:
        """Tensors of which none has exploded."""
        start = first_of(np.where(np.isfinite(values), values, np.nan))
        none, missing = np.full(len(start), -1), np.isnan(values)
        if not len(values):
            return cls(start, median, level, none, none.copy(), start.copy(), none.copy())
        top = np.where(missing, -np.inf, values).argmax(axis=0)
        peak = values[top, np.arange(len(start))].astype(np.float64)
        return cls(start, median, level, none, np.where(missing.all(axis=0), -1, top), peak, none.copy())

    def table(self, quantity: str, steps: NDArray[np.int64], parameters: tuple[str, ...]) -> pd.DataFrame:
        """The columns `COLUMNS`."""
        if not len(self.start) or not len(steps):
            return pd.DataFrame({name: pd.Series(dtype=_TYPES.get(name, "float64")) for name in COLUMNS})
        exploded = self.first >= 0
        recovered = exploded & (self.back >= 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return pd.DataFrame(
                {
                    "quantity": quantity,
                    "parameter": list(parameters),
                    "exploded": exploded,
                    "first_step": np.where(exploded, steps[self.first], np.nan),
                    "peak_step": np.where(self.peak_row >= 0, steps[self.peak_row], np.nan),
                    "peak": self.peak,
                    "later_median": self.median,
                    "peak_over_median": self.peak / self.median,
                    "start_over_median": self.start / self.median,
                    "recovery_steps": np.where(recovered, steps[self.back] - steps[self.first], np.nan),
                },
                columns=list(COLUMNS),
            )


def _search(
    values: Matrix,
    steps: NDArray[np.int64],
    *,
    broken: Flags,
    course: Course,
    factor: float,
    settled: float,
    only: Flags | None = None,
) -> _Found:
    """Look for explosions in every column.

    Args:
        values: the quantity, (T, P); NaN where it is missing.
        steps: the recorded steps, (T,).
        broken: where the quantity isn't finite although it was recorded, (T, P).
        course: how the run went.
        factor: how many times its usual level counts as an explosion.
        settled: share of the recorded steps after which a run counts as settled.
        only: stretches without such a step don't count, (T, P); by default all may.
    """
    told = np.isfinite(values) & (values > 0)
    sound = np.where(told, values, np.nan)
    end = len(values) if course.until is None else course.until
    begin = settled_from(steps, settled) if course.until is None else 0
    medians = column_medians(sound[begin:end])
    found = _Found.of(values, medians, np.fmax(first_of(sound), medians))
    with np.errstate(invalid="ignore"):
        over = values > factor * found.level
    # Most tensors never leave their usual level. The others are looked at one by one.
    for p in np.flatnonzero(over.any(axis=0) | broken.any(axis=0)):
        column = Series.of(values[:, p], broken[:, p], steps, course, factor)
        median, first = column.explosion(settled, None if only is None else only[:, p])
        found.median[p], found.level[p] = median, np.fmax(column.start, median)
        top = column.peak(first or 0)
        found.peak_row[p], found.peak[p] = column.rows[top], column.x[top]
        if first is not None:
            found.first[p] = column.rows[first]
            back = column.back(median, first)
            found.back[p] = -1 if back is None else column.rows[back]
    return found
