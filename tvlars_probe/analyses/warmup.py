"""Was warm-up needed, for which layers, and for how long?

A run without warm-up answers by what its loss did in the early epochs. Three marks in a trace speak for warm-up:

- A layer is *hot*: its own trust ratio (without schedule and φ) is far above what it settles at. At full rate it would
  take steps many times as large as its usual ones.
- A tensor that is left out of adaptation is *overwritten*: one step at full rate moves it by more than its own norm.
- The loss *rises* early, or stops being finite.

One mark speaks against it. Scaling is *redundant* where the schedule holds back a layer whose own ratio is already
below what it settles at: LARS with warm-up is held back twice (arXiv:2309.14053). It is measured as a share of the
warm-up's steps and adapted layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import rates
from tvlars_probe.analyses.course import Course
from tvlars_probe.analyses.explosions import QUANTITIES, explosions_of
from tvlars_probe.analyses.grid import column_medians
from tvlars_probe.analyses.rates import decompose, highest_rate
from tvlars_probe.analyses.spans import settled_from, spans
from tvlars_probe.analyses.warmup_rule import EarlyLoss, Thresholds, early_loss, judge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid, Matrix
    from tvlars_probe.analyses.rates import Decomposition
    from tvlars_probe.analyses.verdict import Verdict

COLUMNS = (*rates.COLUMNS, "grad_norm", "update_norm")
"""Columns of the table ``layers`` that `analyse_warmup` needs."""

STEP_COLUMNS = ("step", "loss", "lr")
"""Columns of the table ``steps`` that it needs."""


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """What a trace says of warm-up.

    Attributes:
        facts: what the run's manifest tells.
        verdict: needed, not needed, or can't tell.
        warmup_steps: updates before the learning rate first reaches its peak; None where it never does.
        suggested_steps: updates of warm-up that cover all hot and overwritten steps of every tensor; without such steps
            those until the loss recovered. None where nothing asks for warm-up, or none was needed. Where not every
            update is recorded, what is seen at a recorded step is taken to last until the next one, here and below.
        suggested_epochs: the same in epochs.
        setting_layers: the tensors that set that length.
        early: what the loss did in the early steps.
        layers: a row per tensor: ``adapted``; ``redundant_share``; ``start_over_settled`` (its own ratio at first, over
            its later median); ``full_rate_step`` (‖Δw‖/‖w‖ of one step at full rate without momentum, median over the
            early steps); ``hot_steps`` and ``overwritten_steps`` (numbers of early updates); ``length`` (updates until
            the last of these is over); ``held_back_steps`` and ``redundant_steps`` (numbers of the warm-up's updates);
            ``update_ratio`` (recorded ‖Δw‖/‖w‖, median over the early steps).
        explosions: the table of `explosions_of`.
        last_early: the last step that counts as early.
        last_step: the last recorded step.
        thresholds: the thresholds that were applied.
    """

    facts: RunFacts
    verdict: Verdict
    warmup_steps: int | None
    suggested_steps: int | None
    suggested_epochs: float | None
    setting_layers: tuple[str, ...]
    early: EarlyLoss
    layers: pd.DataFrame
    explosions: pd.DataFrame
    last_early: int = 0
    last_step: int = 0
    thresholds: Thresholds = field(default_factory=Thresholds)


def analyse_warmup(
    grid: LayerGrid, steps: pd.DataFrame, facts: RunFacts, thresholds: Thresholds | None = None
) -> Warmup:
    """Tell whether a run needed warm-up, for which layers, and of what length.

    Tensors are gone through in blocks, so that a long trace takes little more memory than the grid itself.

    Args:
        grid: the columns `COLUMNS` of the table ``layers``.
        steps: the columns `STEP_COLUMNS` of every update; without ``lr`` the warm-up is as long as the layers tell.
        facts: what the run's manifest tells.
        thresholds: thresholds of the rule.
    """
    limits = thresholds or Thresholds()
    peak = facts.peak_lr or highest_rate(grid)
    warmup_rows = _rows_before_peak(grid, peak)
    # The layers of a phase's first update may not be on record.
    first = int(min([*grid.steps[:1], *steps["step"][:1]], default=0))
    window = _early_rows(grid.steps, warmup_rows, first + limits.early(facts))
    course = Course.of(grid.steps, steps, facts, loss_rise=limits.loss_rise)
    # The highest learning rate is that of the whole grid: a block's own may be lower.
    told, highest = dataclasses.replace(facts, peak_lr=peak), highest_rate(grid)
    tables, found = [], []
    # A grid without tensors has no blocks. Taken as one, it gives empty tables with their columns.
    for block in grid.blocks() if grid.parameters else [grid]:
        tables.append(_layer_table(block, decompose(block, told, highest), warmup_rows, window, first, limits))
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
    within = _updates_before_peak(grid.steps, warmup_rows, steps, first)
    last_early = max(first - 1 + max(limits.early(facts), within or 0), *grid.steps[window].tolist()[-1:], 0)
    verdict = judge(
        thresholds=limits,
        recorded=len(grid.steps),
        warmup_steps=within,
        layers=layers,
        explosions=explosions,
        early=early,
        suggested=suggested,
        early_spans=spans(grid.steps)[window],
        last_early=last_early,
    )
    if verdict.answer == "not needed":
        suggested, setting = None, []
    return Warmup(
        facts=facts,
        verdict=verdict,
        warmup_steps=within,
        suggested_steps=suggested,
        suggested_epochs=suggested / facts.steps_per_epoch if suggested and facts.steps_per_epoch else None,
        setting_layers=tuple(setting),
        early=early,
        layers=layers,
        explosions=explosions,
        last_early=last_early,
        last_step=int(grid.steps[-1]) if len(grid.steps) else 0,
        thresholds=limits,
    )


def _rows_before_peak(grid: LayerGrid, peak_lr: float) -> int:
    """Recorded steps before the learning rate first comes within 0.1 % of its peak; all, if the trace ends before.

    Where only every n-th step is recorded, none of them may come that close. The peak is then taken to be at the
    recorded step with the highest rate, unless that is the last one: the rate may still be rising.
    """
    if not len(grid.steps):
        return 0
    rate = np.fmax.reduce(grid["lr"], axis=1).astype(np.float64)
    there = rate >= 0.999 * peak_lr
    highest = int(np.nan_to_num(rate, nan=-1.0).argmax())
    return int(there.argmax()) if there.any() else highest if highest < len(rate) - 1 else len(rate)


def _updates_before_peak(recorded: NDArray[np.int64], rows: int, steps: pd.DataFrame, first: int) -> int | None:
    """Updates before the learning rate reaches its peak; None if it doesn't.

    Args:
        recorded: the steps whose layers are recorded.
        rows: how many of them come before the peak.
        steps: the rows of every update: the first group's rate tells where between recorded steps the peak is.
        first: the first update.
    """
    if rows == len(recorded):
        return None
    before = int(recorded[rows - 1]) if rows else first
    after = int(recorded[rows + 1]) if rows + 1 < len(recorded) else int(recorded[rows]) + 1
    near = steps[(steps["step"] >= before) & (steps["step"] < after)]
    rate = near["lr"].to_numpy(float) if "lr" in near else np.zeros(0)
    there = rate >= 0.999 * np.fmax.reduce(rate, initial=-np.inf)
    # A first group that is at its peak before has no warm-up, or ends it earlier than the others.
    told = there.any() and (not there[0] or (not rows and near["step"].iloc[0] == first))
    return int(near["step"].to_numpy()[there.argmax()] if told else recorded[rows]) - first


def _early_rows(steps: NDArray[np.int64], warmup_rows: int, end: int) -> NDArray[np.bool_]:
    """Which recorded steps are early, (T,): the warm-up, or those before ``end`` where that comes later."""
    return (np.arange(len(steps)) < warmup_rows) | (steps < end)


def _layer_table(
    grid: LayerGrid, split: Decomposition, warmup_rows: int, window: NDArray[np.bool_], first: int, limits: Thresholds
) -> pd.DataFrame:
    """The rows of `Warmup.layers` for the tensors of one block; lengths count from the update ``first``."""
    own = split.own_ratio
    # A trace that ends within the warm-up has no settled part: medians of no rows are NaN, and nothing is hot or
    # redundant beside them.
    is_whole = warmup_rows < len(own)
    later = own[max(warmup_rows, settled_from(split.steps, limits.settled)) if is_whole else len(own) :]
    settled = column_medians(later)
    early = own[window]
    weight_norm = grid["weight_norm"][window].astype(np.float64)
    # A step relative to a norm of zero, where biases begin, means nothing.
    safe = np.where(weight_norm > 0, weight_norm, np.nan)
    full_rate_step = split.peaks * early * _direction(grid, split, window) / safe
    hot = split.adapted & (early > limits.hot * settled)
    overwritten = ~split.adapted & (full_rate_step > limits.overwrite)
    at_stake = hot | overwritten
    # The 0.1 % by which `_rows_before_peak` finds the peak.
    held_back = split.terms["schedule"][:warmup_rows] < np.log(0.999)
    redundant = held_back & (own[:warmup_rows] < settled) & split.adapted
    updates = spans(split.steps)
    cells, spared = (updates[:warmup_rows] @ flags for flags in (held_back & split.adapted, redundant))
    ends = (split.steps + updates - first)[window]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "parameter": list(split.parameters),
                "adapted": split.adapted,
                "held_back_steps": cells,
                "redundant_steps": spared,
                "redundant_share": np.where(cells > 0, spared / cells, np.nan),
                "start_over_settled": _first(early) / settled,
                "full_rate_step": column_medians(full_rate_step),
                "hot_steps": updates[window] @ hot,
                "overwritten_steps": updates[window] @ overwritten,
                "length": np.where(at_stake.any(axis=0), _last(at_stake, ends), 0) if len(ends) else 0,
                "update_ratio": column_medians(grid["update_norm"][window].astype(np.float64) / safe),
            }
        )


def _direction(grid: LayerGrid, split: Decomposition, window: NDArray[np.bool_]) -> Matrix:
    """Norm of what the effective rate multiplies, in the early steps, without momentum.

    It is the recorded ‖d‖, or ‖g‖ where there is none. In the Adam family, and for an optimizer that isn't known, it is
    ‖Δw‖/lr, momentum included: that needs no knowledge of the rule.
    """
    divisor, grad, update, lr = (
        grid[c][window].astype(np.float64) for c in ("direction_norm", "grad_norm", "update_norm", "lr")
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
    last: NDArray[np.int64] = ends[len(flags) - 1 - flags[::-1].argmax(axis=0)]
    return last


def _by_quantity(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The tables of all blocks in one, ordered by quantity."""
    joined = pd.concat(tables, ignore_index=True)
    order = {name: place for place, name in enumerate(QUANTITIES)}
    return joined.sort_values("quantity", key=lambda names: names.map(order), kind="stable", ignore_index=True)
