"""Marks in a trace that speak for warm-up or against it, layer by layer.

- A layer is *hot*: its own trust ratio (without schedule and φ) is far above what it settles at. At full rate it would
  take steps many times as large as its usual ones.
- A tensor that is left out of adaptation is *overwritten*: one step at full rate moves it by more than its own norm.
- The loss *rises* early, or stops being finite.
- Scaling is *redundant* where the schedule holds back a layer whose own ratio is already below what it settles at: LARS
  with warm-up is held back twice (arXiv:2309.14053). It is measured as a share of the warm-up's steps and adapted
  layers.

Marks say which layers are at stake, and how long a warm-up would cover them. Whether warm-up was needed at all is
another question: runs do well with hot layers and overwritten tensors. `tvlars_probe.analyses.warmup.rule` answers it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import rates
from tvlars_probe.analyses.course import Course
from tvlars_probe.analyses.explosions import QUANTITIES, explosions_of
from tvlars_probe.analyses.grid import column_medians
from tvlars_probe.analyses.rate_courses import AT_PEAK, rate_courses
from tvlars_probe.analyses.rates import decompose
from tvlars_probe.analyses.spans import settled_from, spans
from tvlars_probe.analyses.warmup.counts import MarkCounts, figures_of
from tvlars_probe.analyses.warmup.early_loss import EarlyLoss, early_loss
from tvlars_probe.analyses.warmup.lengths import WarmupLengths
from tvlars_probe.analyses.warmup.thresholds import Thresholds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid, Matrix
    from tvlars_probe.analyses.rate_courses import RateCourses
    from tvlars_probe.analyses.rates import Decomposition
    from tvlars_probe.analyses.verdict import Figure

COLUMNS = (*rates.COLUMNS, "grad_norm", "update_norm")
"""Columns of the table ``layers`` that `marks_of` needs."""

STEP_COLUMNS = ("step", "loss", "lr")
"""Columns of the table ``steps`` that it needs."""


@dataclass(frozen=True, kw_only=True)
class WarmupMarks:
    """What a trace holds on warm-up.

    Attributes:
        facts: what the run's manifest tells.
        figures: those that a verdict may rest on, from the tables below.
        peak_lr: highest learning rate of the first parameter group, from the manifest or else from the trace; None
            where neither tells it.
        warmup_steps: updates before the learning rate first reaches its peak, in the parameter group that takes
            longest; None where one never does. Groups that join after the early steps don't count.
        suggested_steps: updates of warm-up that cover all hot and overwritten steps of every tensor; without such steps
            those until the loss recovered. None where nothing asks for warm-up. Where not every
            update is recorded, what is seen at a recorded step is taken to last until the next one, here and below.
        suggested_epochs: the same in epochs.
        setting_layers: the tensors that set that length.
        early: what the loss did in the early steps.
        layers: a row per tensor: ``adapted``; ``peak_lr``, the highest learning rate of its parameter group, and
            ``warmup_steps``, the updates before the group first has it (null where it never does); ``early_steps``, the
            number of updates that count as early for it, and ``longest_span``, the most of these that one recorded step
            stands for; ``held_back_steps`` and ``redundant_steps`` (numbers of the warm-up's updates), and
            ``redundant_share``; ``start_over_settled`` (its own ratio at first, over its later median);
            ``full_rate_step`` (‖Δw‖/‖w‖ of one step at that peak without momentum, median over the early steps);
            ``hot_steps`` and ``overwritten_steps`` (numbers of early updates); ``length`` (updates until the last of
            these is over); ``update_ratio`` (recorded ‖Δw‖/‖w‖, median over the early steps).
        explosions: the table of `explosions_of`.
        last_early: the last step that counts as early.
        last_step: the last recorded step.
        recorded_steps: number of steps with recorded layers.
        thresholds: the thresholds that were applied.
    """

    facts: RunFacts
    figures: tuple[Figure, ...]
    peak_lr: float | None
    warmup_steps: int | None
    suggested_steps: int | None
    suggested_epochs: float | None
    setting_layers: tuple[str, ...]
    early: EarlyLoss
    layers: pd.DataFrame
    explosions: pd.DataFrame
    last_early: int = 0
    last_step: int = 0
    recorded_steps: int = 0
    thresholds: Thresholds = field(default_factory=Thresholds)


def marks_of(
    grid: LayerGrid, steps: pd.DataFrame, facts: RunFacts, thresholds: Thresholds | None = None
) -> WarmupMarks:
    """Find the marks of a run: for which layers warm-up may matter, and of what length.

    Tensors are gone through in blocks, so that a long trace takes little more memory than the grid itself.

    Args:
        grid: the columns `COLUMNS` of the table ``layers``.
        steps: the columns `STEP_COLUMNS` of every update; without ``lr`` the warm-up is as long as the layers tell.
        facts: what the run's manifest tells.
        thresholds: thresholds of the rule.
    """
    limits = thresholds or Thresholds()
    # Of the whole grid: a block may hold only some tensors of a group.
    courses = rate_courses(grid, facts)
    warmups = WarmupLengths.of(grid.steps, steps, courses)
    course = Course.of(grid.steps, steps, facts, loss_rise=limits.loss_rise)
    tables, found, first = [], [], 0
    # A grid without tensors has no blocks. Taken as one, it gives empty tables with their columns.
    for block in grid.blocks() if grid.parameters else [grid]:
        columns = slice(first, first := first + len(block.parameters))
        own = courses.block(columns)
        tables.append(_layer_table(block, decompose(block, facts, own.peaks), own, warmups.block(columns), limits))
        found.append(
            explosions_of(block, course, factor=limits.explosion, settled=limits.settled, rise=limits.explosion_rise)
        )
    layers, explosions = pd.concat(tables, ignore_index=True), _by_quantity(found)
    early = early_loss(steps, facts, limits)
    lengths = layers.set_index("parameter")["length"]
    needed = lengths[lengths > 0].sort_values(ascending=False, kind="stable")
    suggested = int(needed.iloc[0]) if len(needed) else early.recovered_after
    setting = [str(name) for name in needed.index[needed == needed.max()]]
    # A loss that rose without a hot or overwritten tensor: the tensor that moved most is named.
    if not setting and suggested:
        widest = layers.sort_values("update_ratio", ascending=False, kind="stable")["parameter"]
        setting = [str(name) for name in widest[:1]]
    within, last_early = warmups.of_run(grid.steps, courses, limits.early(facts))
    counts = MarkCounts.of(layers, explosions, limits, last_early)
    return WarmupMarks(
        facts=facts,
        figures=figures_of(counts, early, within, suggested),
        peak_lr=_told_or_found(facts.peak_lr, courses.main_peak),
        warmup_steps=within,
        suggested_steps=suggested,
        suggested_epochs=suggested / facts.steps_per_epoch if suggested and facts.steps_per_epoch else None,
        setting_layers=tuple(setting),
        early=early,
        layers=layers,
        explosions=explosions,
        last_early=last_early,
        last_step=int(grid.steps[-1]) if len(grid.steps) else 0,
        recorded_steps=len(grid.steps),
        thresholds=limits,
    )


def _told_or_found(told: float | None, found: float) -> float | None:
    """The peak by the manifest, else by the trace."""
    # The trace holds it in float32: what lies beyond its sixth digit is rounding, and would keep pairs apart.
    return told if told is not None else None if np.isnan(found) else float(f"{found:.6g}")


def _layer_table(
    grid: LayerGrid, split: Decomposition, courses: RateCourses, warmups: WarmupLengths, limits: Thresholds
) -> pd.DataFrame:
    """The rows of `WarmupMarks.layers` for one block's tensors; lengths count from the begin of a tensor's group."""
    own, steps, (rows, _) = split.own_ratio, split.steps, split.own_ratio.shape
    row, warming, updates = np.arange(rows)[:, None], courses.before_peak(rows), spans(steps)
    # The warm-up of the tensor's group is early, and so are the first updates of the run where these last longer.
    window = warming | (steps < warmups.first + limits.early(split.facts))[:, None]
    # A group whose rate is still rising at the end has no settled part: medians of no rows are NaN, and nothing is hot
    # or redundant beside them.
    later = row >= np.maximum(courses.reached, settled_from(steps, limits.settled))
    settled = column_medians(np.where(later, own, np.nan))
    early, weight_norm = np.where(window, own, np.nan), grid["weight_norm"].astype(np.float64)
    # A step relative to a norm of zero, where biases begin, means nothing.
    safe = np.where(window & (weight_norm > 0), weight_norm, np.nan)
    full_rate_step = split.peaks * early * _direction(grid, split) / safe
    hot = split.adapted & (early > limits.hot * settled)
    overwritten = ~split.adapted & (full_rate_step > limits.overwrite)
    at_stake = hot | overwritten
    held_back = warming & (split.terms["schedule"] < np.log(AT_PEAK)) & split.adapted
    cells, spared = updates @ held_back, updates @ (held_back & (own < settled))
    length = np.where(at_stake.any(axis=0), _last(at_stake, steps + updates) - warmups.begins, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "parameter": list(split.parameters),
                "adapted": split.adapted,
                "peak_lr": split.peaks,
                "warmup_steps": warmups.lengths,
                "early_steps": updates @ window,
                "longest_span": (updates[:, None] * window).max(axis=0, initial=0),
                "held_back_steps": cells,
                "redundant_steps": spared,
                "redundant_share": np.where(cells > 0, spared / cells, np.nan),
                "start_over_settled": _first(early) / settled,
                "full_rate_step": column_medians(full_rate_step),
                "hot_steps": updates @ hot,
                "overwritten_steps": updates @ overwritten,
                "length": length,
                "update_ratio": column_medians(grid["update_norm"].astype(np.float64) / safe),
            }
        )


def _direction(grid: LayerGrid, split: Decomposition) -> Matrix:
    """Norm of what the effective rate multiplies, without momentum, (T, P).

    It is the recorded ‖d‖, or ‖g‖ where there is none. In the Adam family, and for an optimizer that isn't known, it is
    ‖Δw‖/lr, momentum included: that needs no knowledge of the rule.
    """
    divisor, grad, update, lr = (
        grid[name].astype(np.float64) for name in ("direction_norm", "grad_norm", "update_norm", "lr")
    )
    groups = split.facts.descriptions_of(split.parameters)
    by_update = np.array([not g.is_known or g.momentum.form == "moving-average" for g in groups], bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.where(by_update, np.where(lr > 0, update / lr, np.nan), grad)
    return np.where(np.isnan(divisor), plain, divisor)


def _first(values: Matrix) -> Matrix:
    """Each column's first finite value; its very first value where none is finite."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    first: Matrix = values[np.isfinite(values).argmax(axis=0), np.arange(values.shape[1])]
    return first


def _last(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The end of the last row in which each column's flag is set; that of the last row of all where it never is."""
    if not len(flags):
        return np.zeros(flags.shape[1], np.int64)
    last: NDArray[np.int64] = ends[len(flags) - 1 - flags[::-1].argmax(axis=0)]
    return last


def _by_quantity(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The tables of all blocks in one, ordered by quantity."""
    joined = pd.concat(tables, ignore_index=True)
    order = {name: place for place, name in enumerate(QUANTITIES)}
    return joined.sort_values("quantity", key=lambda names: names.map(order), kind="stable", ignore_index=True)
