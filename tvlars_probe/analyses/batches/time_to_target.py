"""At which batch do more samples stop paying? Steps and samples to a target loss, over runs with several batch sizes.

Each batch size stands at its best learning rate. With a small batch a run needs few samples and many steps, with a
large one few steps and many samples; the batch in between, at which both are twice what they must be, is the critical
batch size (`tvlars_probe.analyses.batches.trade_off`). Unlike the noise scale of gradients this takes nothing for
granted of optimizer or curvature: it is what more samples bought.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.admission.numbers import check_level
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.batches.target_curves import (
    EARLY,
    MISSED,
    REACHED,
    TargetCurve,
    batch_size_of,
    chosen_metric,
    curves_of,
)
from tvlars_probe.analyses.batches.trade_off import TradeOff, fit_trade_off
from tvlars_probe.analyses.intervals import IntervalEstimate, number
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import batches as batches_named
from tvlars_probe.analyses.wording import counted_or_no, percent, setting_text, some_of
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.source import Source

QUESTION = "At which batch do more samples stop paying?"

FEWEST_FOR_FIT, FEWEST = 3, 4
"""Fewest batch sizes for a fit, and for one without a doubt."""

_CELL = ["batch_size", "lr", "settings"]
"""Columns of `TimeToTarget.table` in which repetitions with other seeds agree."""

_UNKNOWN = IntervalEstimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True, kw_only=True, repr=False)
class TimeToTarget(Answered):
    """Steps and samples to a target, and the batch size at which both are twice the fewest.

    Attributes:
        verdict: the critical batch size with its interval.
        metric: what the target is of; see `tvlars_probe.analyses.batches.target_curves.METRICS`.
        target: the loss to reach, or the accuracy in percent; NaN where none is reached by enough batch sizes.
        is_chosen: whether the target was chosen here, and not by the caller.
        table: a row per run: ``batch_size``, ``lr`` (peak), the ``settings`` in which runs of one batch size and rate
            differ, ``seed``, ``run``, ``steps`` and ``samples`` to the target (NaN where it wasn't reached),
            ``outcome``, and ``is_best``: whether it has its batch's best rate and settings.
        batches: a row per batch size at its best ``lr`` and ``settings``: number of ``rates`` tried and ``seeds`` that
            reached the target, ``missed`` of those that did not, geometric means ``steps`` and ``samples``, and
            ``fitted_steps``.
        s_min: fewest steps.
        e_min: fewest samples.
        b_crit: critical batch size, in samples.
        level: of the intervals.
        fit: the whole fit; None where there is none.
        doubts: where the runs don't hold the answer, a sentence each.
    """

    verdict: Verdict
    metric: str
    target: float
    is_chosen: bool
    table: pd.DataFrame
    batches: pd.DataFrame
    s_min: IntervalEstimate
    e_min: IntervalEstimate
    b_crit: IntervalEstimate
    level: float
    fit: TradeOff | None
    doubts: tuple[str, ...]


def time_to_target(
    sources: Sequence[Source],
    *,
    target: float | None = None,
    metric: str | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> TimeToTarget:
    """Fit the trade-off between steps and samples to a sweep over batch sizes.

    By default the target is of the loss on a fixed sample of training data, evaluated after each epoch
    (``train_eval_loss``): it has neither the batches' noise nor a gap to test data. Its value is the lowest that lets
    the most batch sizes count: those of which every seed at some rate reaches it, and none before its first evaluation.

    The best rate of a batch size is the one at which most of its seeds reach the target, and of these the one with the
    fewest steps, by the mean of their logarithms over seeds. Runs of one batch size and rate that differ in more than
    the seed, as in momentum or schedule, are no repetitions: each such setting is a candidate by itself.

    Args:
        sources: runs of one optimizer, model and data set that differ in batch size, learning rate and seed. Branches
            are passed over.
        target: loss to reach, above 0, or accuracy in percent.
        metric: one of `tvlars_probe.analyses.batches.target_curves.METRICS`.
        level: level of the intervals.
        seed: seed of the bootstrap.

    Raises:
        UserError: the runs are of several optimizers, models or data sets; there is no such metric, or no loss that all
            of them have; a run doesn't tell its samples; the target or the level is outside its range.
    """
    check_level(level)
    runs = [source for source in sources if source.facts.branch is None]
    _check_alike(runs)
    metric = chosen_metric(runs, metric)
    _check_target(target, metric)
    sign = -1.0 if metric.endswith("acc1") else 1.0
    curves = curves_of(runs, metric)
    frame = pd.DataFrame(
        {
            "batch_size": [batch_size_of(run) for run in runs],
            "lr": [_rate(run) for run in runs],
            "settings": "",
            "seed": [run.facts.seed for run in runs],
            "run": [run.facts.name for run in runs],
        }
    )
    differing = _told_apart(frame, runs)
    wanted = _chosen_target(frame, curves) if target is None else sign * target
    table = _reached(frame, curves, wanted)
    batches = _batches(table)
    best = {*batches[_CELL].itertuples(index=False, name=None)}
    table["is_best"] = [cell in best for cell in table[_CELL].itertuples(index=False, name=None)]
    used = table[table["is_best"] & (table["outcome"] == REACHED)]
    has_fit = used["batch_size"].nunique() >= FEWEST_FOR_FIT
    fit = _fitted(used, level, seed) if has_fit else None
    batches["fitted_steps"] = fit.steps(batches["batch_size"]) if fit is not None else math.nan
    doubts = _doubts(runs, table, batches, fit)
    if differing:
        tried = table.groupby("batch_size")["settings"].agg(frozenset).nunique() > 1
        more = ", and not every batch was tried with all of them" if tried else ""
        doubts.append(f"runs of one batch and rate differ in {some_of(differing)}: each batch's best is taken{more}")
    return TimeToTarget(
        verdict=_verdict(batches, fit, metric=metric, target=sign * wanted, level=level),
        metric=metric,
        target=sign * wanted,
        is_chosen=target is None,
        table=table,
        batches=batches,
        s_min=fit.s_min if fit else _UNKNOWN,
        e_min=fit.e_min if fit else _UNKNOWN,
        b_crit=fit.b_crit if fit else _UNKNOWN,
        level=level,
        fit=fit,
        doubts=tuple(doubts),
    )


def _check_alike(runs: Sequence[Source]) -> None:
    if not runs:
        raise UserError("there are no runs but branches: give runs of tvlars-probe train or sweep over batch sizes")
    for name in ("optimizer", "model", "data"):
        found = sorted({str(getattr(run.facts, name)) for run in runs})
        if len(found) > 1:
            raise UserError(f"the runs are of several {name}s ({some_of(found)}): give those of one")
    sizes = {run.facts.train_samples for run in runs if run.facts.train_samples is not None}
    if len(sizes) > 1:
        told = some_of([f"{size:,}" for size in sorted(sizes)])
        raise UserError(f"the runs have several sizes of training data ({told} samples): give those of one")


def _check_target(target: float | None, metric: str) -> None:
    most = 100 if metric.endswith("acc1") else math.inf
    if target is not None and not 0 < target < most:
        allowed = "above 0" + (", below 100" if most == 100 else "")
        raise UserError(f"--target {target:g} is no {metric} to reach (allowed: {allowed})")


def _told_apart(frame: pd.DataFrame, runs: Sequence[Source]) -> list[str]:
    """Fill the column ``settings``; returns the settings in which runs of one batch size and rate differ."""
    told = [{**run.facts.settings, "schedule": run.facts.schedule} for run in runs]
    for each in told:
        if each["schedule"] in (None, "none"):
            del each["epochs"]  # a longer run takes no other way to the target
    names: dict[str, None] = {}
    for places in frame.groupby(["batch_size", "lr"]).indices.values():
        cell = [told[place] for place in places]
        every = dict.fromkeys(name for each in cell for name in each)
        names |= dict.fromkeys(name for name in every if len({str(each.get(name)) for each in cell}) > 1)
    short = {name: name.rpartition(".")[2] for name in names}
    frame["settings"] = [", ".join(f"{short[name]} {setting_text(each.get(name))}" for name in names) for each in told]
    return [*short.values()]


def _rate(run: Source) -> float:
    """The run's peak learning rate; 0 where it isn't told, so that such runs have one rate."""
    rate = run.peak_lr
    return 0.0 if rate is None else rate


def _chosen_target(frame: pd.DataFrame, curves: Sequence[TargetCurve]) -> float:
    """The lowest value that lets the most batch sizes count; NaN where no run has any."""
    told = frame.assign(best=[curve.best for curve in curves], first=[curve.first for curve in curves])
    by_rate = told.groupby(_CELL, dropna=False)
    # A rate reaches what its worst seed does. To count it mustn't be there before its first evaluation.
    worst, first = by_rate["best"].max(), by_rate["first"].min()
    candidates = sorted(worst.groupby("batch_size").min().replace(math.inf, math.nan).dropna())
    best, most = math.nan, 0
    for value in candidates:  # from the lowest on, so that of equal ones the lowest stays
        counts = (worst <= value) & (first > value)
        # A batch of which some rate was there too early can't tell its best rate.
        early = ((worst <= value) & (first <= value)).groupby("batch_size").any()
        usable = int((counts.groupby("batch_size").any() & ~early).sum())
        if usable > most:
            best, most = float(value), usable
    return best


def _reached(frame: pd.DataFrame, curves: Sequence[TargetCurve], target: float) -> pd.DataFrame:
    """`TimeToTarget.table` without ``is_best``."""
    found = [curve.reach(target) for curve in curves]
    samples = np.array([samples for _, samples in found])
    return frame.assign(
        steps=samples / frame["batch_size"].to_numpy(float), samples=samples, outcome=[outcome for outcome, _ in found]
    )


def _batches(table: pd.DataFrame) -> pd.DataFrame:
    """`TimeToTarget.batches` without ``fitted_steps``."""
    rows = []
    for size in sorted({*table["batch_size"]}):
        of_size = table[table["batch_size"] == size]
        # Early ones first: such a rate is at least as fast as any that was timed.
        (_, rate, settings), best = min(of_size.groupby(_CELL), key=lambda item: _order(item[1]))
        reached = best[best["outcome"] == REACHED]
        steps = float(np.exp(np.log(reached["steps"]).mean())) if len(reached) else math.nan
        rows.append(
            {
                "batch_size": size,
                "lr": rate,
                "settings": settings,
                "rates": of_size["lr"].nunique(),
                "is_edge": bool(rate in (of_size["lr"].min(), of_size["lr"].max())),
                "seeds": len(reached),
                "missed": int((best["outcome"] == MISSED).sum()),
                "early": int((best["outcome"] == EARLY).sum()),
                "steps": steps,
                "samples": steps * size,
            }
        )
    return pd.DataFrame(rows)


def _order(runs: pd.DataFrame) -> tuple[float, float]:
    """What is smaller for the better of two rates: the share of seeds that missed, then the steps."""
    missed = float((runs["outcome"] == MISSED).mean())
    reached = runs.loc[runs["outcome"] == REACHED, "steps"]
    if (runs["outcome"] == EARLY).any():
        return missed, -math.inf
    return missed, float(np.log(reached).mean()) if len(reached) else math.inf


def _fitted(used: pd.DataFrame, level: float, seed: int) -> TradeOff:
    # Runs of one seed repeat each other and are no independent draws; a run without a seed stands for itself.
    who = used["seed"].astype(object).where(used["seed"].notna(), used["run"])
    logs = np.log(used["steps"]).groupby([used["batch_size"], who]).mean()
    sizes = logs.index.get_level_values(0).to_numpy(float)
    return fit_trade_off(sizes, np.exp(logs.to_numpy(float)), level=level, seed=seed)


def _doubts(runs: Sequence[Source], table: pd.DataFrame, batches: pd.DataFrame, fit: TradeOff | None) -> list[str]:
    doubts = []

    def told(rows: pd.DataFrame) -> str:
        return batches_named([*rows["batch_size"]])

    usable = batches[batches["seeds"] > 0]
    if len(usable) < FEWEST:
        doubts.append(f"{counted_or_no(len(usable), 'batch size')} reached the target: give {FEWEST} or more")
    if len(some := batches[(batches["rates"] == 1)]):
        doubts.append(f"one learning rate was tried with {told(some)}: a better one may need fewer steps")
    if len(some := usable[(usable["rates"] > 1) & usable["is_edge"]]):
        doubts.append(f"the best rate of {told(some)} is at the edge of those tried: widen the grid there")
    if len(some := batches[batches["missed"] > 0]):
        doubts.append(f"the target isn't reached by every seed of {told(some)}: those that do count alone")
    if len(some := batches[batches["early"] > 0]):
        doubts.append(f"{told(some)} reached the target before the first evaluation: the time to it isn't known")
    if {run.facts.schedule for run in runs} - {None, "none"}:
        doubts.append("the learning rate follows a schedule that ends with the run: steps depend on the length planned")
    if {*table["outcome"]} == {MISSED}:
        doubts.append("no run reached the target: give a higher loss, or train longer")
    if fit is None:
        return doubts
    if math.isnan(fit.b_crit.low):
        doubts.append("one seed of each batch size: there is no interval")
    if fit.is_poor:
        doubts.append(
            f"the curve fits poorly: steps are off by {100 * fit.misfit:.2g} % on average, more than seeds explain "
            f"(chance {fit.chance:.1g})"
        )
    least, most = usable["batch_size"].min(), usable["batch_size"].max()
    if fit.b_crit.value > most or (math.isnan(fit.b_crit.value) and fit.b_crit.high == math.inf):
        doubts.append("all batches lie below the critical one: try larger ones")
    elif fit.b_crit.value < least or math.isnan(fit.b_crit.value):
        doubts.append("all batches lie above the critical one: try smaller ones")
    return doubts


def _verdict(batches: pd.DataFrame, fit: TradeOff | None, *, metric: str, target: float, level: float) -> Verdict:
    estimates = (fit.b_crit, fit.s_min, fit.e_min) if fit else (_UNKNOWN,) * 3
    figures = (
        Figure("b_crit", estimates[0].value, "sample", "critical batch size, E_min/S_min"),
        Figure("b_crit_low", estimates[0].low, "sample", f"lower end of its {percent(level)} interval"),
        Figure("b_crit_high", estimates[0].high, "sample", f"upper end of its {percent(level)} interval"),
        Figure("s_min", estimates[1].value, "step", "fewest steps to the target, with any batch"),
        Figure("e_min", estimates[2].value, "sample", "fewest samples to the target, with any batch"),
        Figure("target", target, "%" if metric.endswith("acc1") else "1", f"{metric} to be reached"),
    )
    usable = int((batches["seeds"] > 0).sum())
    if fit is None:
        reached = f"{counted_or_no(usable, 'batch size')} reached {metric} {target:.4g}"
        reason = f"{reached}, and a fit takes {FEWEST_FOR_FIT}."
        if math.isnan(target):
            reason = f"no {metric} is reached by several batch sizes after their first evaluation."
        return Verdict(QUESTION, CANT_TELL, reason, figures)
    b_crit, s_min, e_min = estimates
    what = (
        f"to {metric} {target:.4g} it takes at least {s_min.text} steps and {e_min.text} samples; their ratio is "
        f"{b_crit.text}, from {usable} batch sizes."
    )
    if math.isnan(b_crit.low):
        return Verdict(QUESTION, CANT_TELL, what, figures)
    if b_crit.is_known:
        return Verdict(QUESTION, f"about {number(b_crit.value)}", what, figures)
    if b_crit.low > 0:
        return Verdict(QUESTION, f"above {number(b_crit.low)}", what, figures)
    if b_crit.high < math.inf:
        return Verdict(QUESTION, f"below {number(b_crit.high)}", what, figures)
    return Verdict(QUESTION, CANT_TELL, what, figures)
