"""What a run's trace shows early and late of how it took its learning rate: the figures that rules on warm-up may read.

*Early* are the first `EARLY` updates of the phase, *late* is the last quarter of its recorded updates without the early
ones. Losses and norms are told relative to their first value, so that they compare between models. A *weight* is a
tensor of two or more dimensions; biases and what normalises are *vectors*. What a trace doesn't hold is None.

None of the figures says by itself whether warm-up was needed. How often a rule on them is right is measured on pairs of
runs: see docs/evidence/verdicts.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses.chance import above_chance
from tvlars_probe.analyses.course import losses_of
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid, column_medians, median_of
from tvlars_probe.analyses.spans import settled_from
from tvlars_probe.analyses.verdict import Figure
from tvlars_probe.analyses.warmup.marks import COLUMNS, STEP_COLUMNS, marks_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tvlars_probe.analyses.grid import Matrix
    from tvlars_probe.analyses.warmup.marks import WarmupMarks

    Floats = NDArray[np.float64]

EARLY = 20
"""So many first updates are early."""

LATE = 0.75
"""What follows this share of the recorded updates is late."""

CURVATURE_COLUMNS = ("step", "measure", "value")
"""Columns of the table ``curvature`` that are read."""

JUMP = 0.1
"""A rise of the loss by this share of its first value, from one update to the next, is a jump."""

_CARRIED = ("hot_share", "redundant_share", "overwritten", "lnr_explosions", "gradient_explosions")
"""Figures of the warm-up analysis that are features as they are."""


def warmup_features(
    grid: LayerGrid, steps: pd.DataFrame, marks: WarmupMarks, *, accuracy: float | None, curvature: pd.DataFrame
) -> tuple[Figure, ...]:
    """The features of a run, each with its unit and its meaning, in a fixed order.

    Args:
        grid: the columns `tvlars_probe.analyses.warmup.marks.COLUMNS` of the table ``layers``.
        steps: the columns `tvlars_probe.analyses.warmup.marks.STEP_COLUMNS` of every update.
        marks: those of the same run.
        accuracy: the last test accuracy in percent; None where there is none.
        curvature: the columns `CURVATURE_COLUMNS` of the table ``curvature``; it may have no rows.
    """
    return (
        *_of_loss(steps, marks.facts),
        *_of_learning(steps, marks.facts, accuracy),
        *_of_norms(grid),
        *_of_updates(grid, marks.facts),
        *_of_full_rate(marks),
        *_of_ratios(grid, marks),
        _critical(curvature, marks),
        *(figure for name in _CARRIED for figure in marks.figures if figure.name == name),
        Figure("warmup_steps", marks.warmup_steps, "step", "updates before the learning rate first reached its peak"),
    )


def named_features() -> tuple[Figure, ...]:
    """The features of a trace without rows: names, units and meanings, and no value."""
    columns = [name for name in COLUMNS if name not in ("step", "parameter")]
    grid = LayerGrid.from_rows([], np.empty(0, np.int64), columns=columns)
    steps = pd.DataFrame({name: np.empty(0) for name in STEP_COLUMNS})
    curvature = pd.DataFrame({name: np.empty(0) for name in CURVATURE_COLUMNS})
    marks = marks_of(grid, steps, RunFacts(name=""))
    return warmup_features(grid, steps, marks, accuracy=None, curvature=curvature)


def _of_loss(steps: pd.DataFrame, facts: RunFacts) -> tuple[Figure, ...]:
    """How high the loss rose, and how far it fell, over its first value."""
    at, loss = losses_of(steps, facts)
    update, lost = at - at[:1], np.flatnonzero(~np.isfinite(loss))
    # Nothing can be told relative to a first loss that is none, or zero.
    relative = loss / loss[:1] if len(loss) and 0 < loss[0] < math.inf else loss[:0]
    place = update[: len(relative)]
    early, late = relative[place < EARLY], relative[_late(place)]
    # Beside the first loss, not the lowest: where nearly all is fitted, the losses of two batches differ by any factor.
    with np.errstate(invalid="ignore"):
        setbacks = relative[1:] - np.minimum.accumulate(relative)[:-1]
        jumps = np.diff(relative) >= JUMP
    known = len(relative) > 0
    return (
        Figure("diverged", float(len(lost) > 0) if len(loss) else None, "1",
               "1 if the loss stopped being finite, else 0"),
        Figure("diverged_step", int(update[lost[0]]) if len(lost) else None, "step", "updates until it did"),
        Figure("early_loss_peak", _highest(early), "1", "highest early loss over the first one"),
        Figure("early_loss_low", float(early.min()) if known else None, "1", "lowest early loss over the first one"),
        Figure("early_setback", _highest(setbacks[place[1:] < EARLY]), "1",
               "how far the early loss rose above its lowest value so far, over the first loss"),
        Figure("loss_peak", _highest(relative), "1", "highest loss of the run over the first one"),
        Figure(
            "loss_peak_place", float(relative.argmax() / max(len(relative) - 1, 1)) if known else None, "share",
            "when the highest loss was, as a share of the recorded updates",
        ),
        Figure("setback", _highest(setbacks), "1",
               "how far the loss rose above its lowest value so far, over the first loss"),
        Figure("loss_jumps", int(jumps.sum()) if known else None, "1",
               f"updates in which the loss rose by at least {JUMP:g} of the first one over the update before"),
        Figure("above_first_loss", _share(relative > 1), "share", "updates with a loss above the first one"),
        Figure("late_loss", _median(late), "1", "late loss (median) over the first one"),
    )  # fmt: skip


def _of_learning(steps: pd.DataFrame, facts: RunFacts, accuracy: float | None) -> tuple[Figure, ...]:
    """Whether it has learned anything: loss and accuracy beside those of guessing."""
    at, loss = losses_of(steps, facts)
    late = _median(loss[_late(at - at[:1])])
    # The loss of Barlow Twins is none of classes.
    chance = facts.chance if facts.phase != "pretrain" else None
    guessing = math.log(100.0 / chance) if chance is not None else None
    return (
        Figure(
            "late_loss_over_chance", late / guessing if late is not None and guessing else None, "1",
            "late loss (median) over the logarithm of the number of classes, the loss of equal guesses",
        ),
        Figure(
            "accuracy_above_chance",
            above_chance(accuracy, chance) if accuracy is not None and chance is not None else None, "share",
            "last test accuracy: 0 is that of equal guesses, 1 is all right",
        ),
    )  # fmt: skip


def _of_norms(grid: LayerGrid) -> tuple[Figure, ...]:
    """How the norms of the whole gradient and of all weights moved."""
    update, figures = grid.steps - grid.steps[:1], list[Figure]()
    for column, what in (("grad_norm", "gradient norm"), ("weight_norm", "norm of all parameters")):
        whole = _whole(grid, column)
        first = whole[np.isfinite(whole) & (whole > 0)][:1]
        relative = whole / first if len(first) else whole[:0]
        early, late = relative[: np.searchsorted(update, EARLY)], relative[_late(update)[: len(relative)]]
        figures += [
            Figure(f"early_{column}_peak", _highest(early), "1", f"highest early {what} over the first one"),
            Figure(f"{column}_peak", _highest(relative), "1", f"highest {what} of the run over the first one"),
            Figure(f"late_{column}", _median(late), "1", f"late {what} (median) over the first one"),
        ]
    return tuple(figures)


def _of_updates(grid: LayerGrid, facts: RunFacts) -> tuple[Figure, ...]:
    """Update-to-weight ratios ‖Δw‖/‖w‖ of the weights."""
    kept = np.flatnonzero(_are_weights(grid.parameters, facts))
    ratio = _update_ratio(grid.of_steps(grid.steps - grid.steps[:1] < EARLY))[:, kept]
    moving = (ratio > 0).any(axis=1)
    typical = np.array([median_of(row[np.isfinite(row)]) for row in ratio])
    late, peaks = list[float](), list[float]()
    rows = _late(grid.steps - grid.steps[:1])
    for block in grid.blocks():
        values = _update_ratio(block)
        late += column_medians(values[rows]).tolist()
        peaks += np.fmax.reduce(values, axis=0, initial=-np.inf).tolist()
    return (
        Figure("first_update_ratio", float(typical[moving][0]) if moving.any() else None, "1",
               "‖Δw‖/‖w‖ of the first update that moved a weight, median over the weights"),
        Figure("early_update_ratio", _highest(typical), "1",
               "highest of the early updates' ‖Δw‖/‖w‖, median over the weights"),
        Figure("widest_early_update_ratio", _highest(ratio.ravel()), "1",
               "highest early ‖Δw‖/‖w‖ of any weight"),
        Figure("update_ratio_peak", _median(np.array(peaks)[kept]), "1",
               "highest ‖Δw‖/‖w‖ of the run, median over the weights"),
        Figure("late_update_ratio", _median(np.array(late)[kept]), "1", "late ‖Δw‖/‖w‖, median over the weights"),
    )  # fmt: skip


def _of_full_rate(marks: WarmupMarks) -> tuple[Figure, ...]:
    """What a single early step at the peak rate would be, without momentum."""
    is_vector = ~_are_weights(marks.layers["parameter"], marks.facts)
    step = marks.layers["full_rate_step"].to_numpy(float)
    what = "‖Δw‖/‖w‖ of an early step at the peak rate without momentum"
    return (
        Figure("full_rate_step", _median(step[~is_vector]), "1", f"{what}, median over the weights"),
        Figure("widest_full_rate_step", _highest(step[~is_vector]), "1", f"{what}, the weight's with the highest"),
        Figure("vector_full_rate_step", _median(step[is_vector]), "1", f"{what}, median over the vectors"),
    )


def _of_ratios(grid: LayerGrid, marks: WarmupMarks) -> tuple[Figure, ...]:
    """Trust ratios of the adapted layers, which only layer-wise optimizers have."""
    adapted = marks.layers["adapted"].to_numpy(bool)
    start = marks.layers["start_over_settled"].to_numpy(float)[adapted]
    early = grid.of_steps(grid.steps - grid.steps[:1] < EARLY)
    ratio = early["trust_ratio"].astype(np.float64)[:, adapted]
    phi = np.nan_to_num(early["phi"].astype(np.float64)[:, adapted], nan=1.0)
    # An optimizer without trust ratios has 1 everywhere; φ isn't the layer's own.
    own = np.where(phi > 0, ratio / np.where(phi > 0, phi, 1.0), np.nan)
    is_layerwise = own.size > 0 and bool((own[np.isfinite(own)] != 1).any())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        change = own[-1] / own[0] if is_layerwise else np.empty(0)
        spread = np.fmax.reduce(own, axis=1) / np.fmin.reduce(own, axis=1) if is_layerwise else np.empty(0)
    return (
        Figure("early_trust_ratio", _median(start) if is_layerwise else None, "1",
               "a layer's first trust ratio (without φ) over its later median, median over the adapted layers"),
        Figure("hottest_trust_ratio", _highest(start) if is_layerwise else None, "1",
               "a layer's first trust ratio (without φ) over its later median, of the adapted layer with the highest"),
        Figure("early_trust_ratio_change", _median(change), "1",
               "trust ratio (without φ) in the last early update over the first one, median over the adapted layers"),
        Figure("trust_ratio_spread", _median(spread), "1",
               "highest trust ratio of any adapted layer over the lowest, median over the early updates"),
    )  # fmt: skip


def _critical(curvature: pd.DataFrame, marks: WarmupMarks) -> Figure:
    """The peak rate beside the early critical rates."""
    rows = curvature[curvature["measure"].astype(str) == "critical_sharpness"]
    early = rows.loc[rows["step"] - marks.facts.first_step < EARLY, "value"].to_numpy(float)
    # Critical sharpness is 2/η_c, η_c the rate at which the update would raise the loss.
    shares = early * (marks.peak_lr or np.nan) / 2
    return Figure(
        "peak_over_critical_rate", _median(shares), "1",
        "the peak rate over the rate at which an early update would raise the loss (2 over its critical sharpness), "
        "median over the early measurements",
    )  # fmt: skip


def _late(update: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the recorded updates are late."""
    row = np.arange(len(update))
    late: NDArray[np.bool_] = (row >= settled_from(update, LATE)) & (update >= EARLY)
    return late


def _whole(grid: LayerGrid, column: str) -> Floats:
    """The norm of all tensors together in each recorded step, (T,)."""
    # Relative to the largest norm, so that no square leaves the range of the numbers.
    scale = np.fmax.reduce(grid[column], axis=None, initial=0.0, where=np.isfinite(grid[column])) or 1.0
    total, told = np.zeros(len(grid.steps)), np.zeros(len(grid.steps), bool)
    for block in grid.blocks():
        values = block[column].astype(np.float64)
        total += np.nansum(np.square(values / scale), axis=1)
        told |= np.isfinite(values).any(axis=1)
    return np.where(told, np.sqrt(total) * float(scale), np.nan)


def _update_ratio(grid: LayerGrid) -> Matrix:
    weight = grid["weight_norm"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        ratio: Matrix = grid["update_norm"] / np.where(weight > 0, weight, np.nan)
    return ratio


def _are_weights(names: Iterable[str], facts: RunFacts) -> NDArray[np.bool_]:
    """Which tensors are weights, (P,); all of them where the manifest tells no shapes."""
    told = facts.parameters
    vectors = {name for name, shape in zip(told["name"], told["shape"], strict=True) if len(shape) < 2}
    return np.array([name not in vectors for name in names], bool)


def _highest(values: Matrix) -> float | None:
    """The highest value, which may be infinite; None where none is told."""
    return float(np.nanmax(values)) if len(values) and not np.isnan(values).all() else None


def _median(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return median_of(finite) if len(finite) else None


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None
