"""Which batch starts to cost? Branches of one checkpoint, compared at equal numbers of samples.

A larger batch makes fewer updates of as many samples. As long as its loss at the end is no higher, the larger batch
costs nothing, and saves time. The smallest batch that is there is the yardstick, unless a larger one is better for
sure: then the loss falls with the batch at first, as where a rule gives small batches a rate that doesn't suit them.

Branched runs from one checkpoint are how Merrill et al. (arXiv 2505.23971) find the critical batch size at a moment of
the training. They take one run for each batch and a fixed tolerance; here several orders of the data give an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd

from tvlars_probe.admission.numbers import check_level
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.batches.branch_losses import losses_of
from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import batches, counted, percent
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.source import Source

QUESTION = "Which batch starts to cost?"

METRICS = ("train_eval_loss", "val_loss", "test_loss")
"""Columns of ``epochs`` in which branches can be compared."""

YARDSTICK, FREE, COSTS, UNKNOWN, WORSE = "yardstick", "free", "costs", "unknown", "worse"
"""What the column ``cost`` says of a batch size. One below the yardstick is worse than a larger one."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Branches(Answered):
    """Branches of one checkpoint side by side.

    Attributes:
        verdict: between which batch sizes the one lies that starts to cost.
        title: the parent and the step.
        step: updates of the parent before the branches.
        samples: samples that each branch was trained on.
        metric: the column of ``epochs`` that is compared.
        tolerance: a difference up to this share of the yardstick's loss is free.
        level: of the intervals.
        table: a row per batch size, ascending: ``batch_size``, ``lr``, ``loss`` (mean over seeds), ``difference`` of
            the loss from the yardstick's (mean over the seeds that both have), ``low`` and ``high`` of its
            interval, ``seeds``, ``diverged`` (branches that did) and ``cost``.
        course: the same differences on the way: a row per batch size and number of ``samples`` at which both it and the
            yardstick were evaluated.
        largest_free: the largest batch size whose difference is within the tolerance, interval and all, below all that
            cost; None where there is none.
        smallest_costly: the smallest batch size whose difference is beyond the tolerance, interval and all; None where
            there is none.
        doubts: what keeps the answer from being sure, a sentence each.
    """

    verdict: Verdict
    title: str
    step: int
    samples: int
    metric: str
    tolerance: float
    level: float
    table: pd.DataFrame
    course: pd.DataFrame
    largest_free: float | None
    smallest_costly: float | None
    doubts: tuple[str, ...]


def is_branch(source: Source) -> bool:
    """Whether a run was made by ``tvlars-probe branch``."""
    return source.facts.branch is not None


def branches_of(
    sources: Sequence[Source], *, metric: str = "train_eval_loss", tolerance: float = 0.05, level: float = 0.95
) -> Branches:
    """Compare the branches of one checkpoint.

    For each batch size B and seed k, d_k = loss(B, k) − loss(B₀, k) at the end, with B₀ the yardstick: branches of one
    seed see the same samples in the same order. The mean of d_k has Student's interval over the seeds. B is free
    where the whole interval is at most ``tolerance`` times the mean loss of B₀, and costs where the whole interval is
    above. Each of the two statements is wrong in at most (1 − level)/2 of the cases for one B, if differences are
    normally distributed. With one seed there is no interval. A batch size of which every branch diverged costs.

    B₀ is the smallest batch that doesn't itself cost, in this sense, beside a larger one: compared with a batch that is
    worse than its neighbours, all of these would be free.

    Args:
        sources: runs; those that are no branches are passed over. Of branches of several checkpoints, or with other
            settings, the largest set is taken, and the latest of equal ones; a doubt names the others.
        metric: one of `METRICS`.
        tolerance: share of the yardstick's loss.
        level: level of the intervals.

    Raises:
        UserError: none of the runs is a branch; there is no such metric; the tolerance is below 0, or the level
            outside its range.
    """
    if metric not in METRICS:
        raise unknown("metric of branches", metric, METRICS)
    if not 0 <= tolerance < math.inf:
        raise UserError(f"a tolerance of {tolerance:g} is outside its range (allowed: 0 or more)")
    check_level(level)
    sets = branch_sets(sources)
    if not sets:
        raise UserError("none of the runs is a branch: make some by 'tvlars-probe branch RUN --checkpoint STEP ...'")
    chosen = max(sets, key=len) if len({len(one) for one in sets}) > 1 else sets[-1]
    doubts = [f"other branches are left out: {_named(one)}" for one in sets if one is not chosen]
    losses, doubts_of_losses = losses_of(chosen, metric)
    doubts += doubts_of_losses
    told = chosen[0].facts.branch or {}
    ends = losses[losses["is_last"]]
    first = _yardstick(ends, tolerance, level)
    table = _table(ends, first, tolerance, level)
    answer, doubts_of_answer = _bounds(table)
    doubts += doubts_of_answer + _doubts(table, losses)
    return Branches(
        verdict=_verdict(table, *answer, metric=metric, tolerance=tolerance, level=level),
        title=_named(chosen),
        step=int(told["step"]),
        samples=int(told["samples"]),
        metric=metric,
        tolerance=tolerance,
        level=level,
        table=table,
        course=_course(losses, first, level),
        largest_free=answer[0],
        smallest_costly=answer[1],
        doubts=tuple(doubts),
    )


def branch_sets(sources: Sequence[Source]) -> list[list[Source]]:
    """The branches among the runs, in sets that can be compared, in order of their steps.

    In a set all go on from one checkpoint, with as many samples, one rule for the learning rate and one kind of order.
    """
    found: dict[tuple[Any, ...], list[Source]] = {}
    for source in sources:
        if (branch := source.facts.branch) is not None:
            key = tuple(branch.get(name) for name in ("step", "run_id", "samples", "lr_rule", "order"))
            found.setdefault(key, []).append(source)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], *map(str, key[1:])))]


def _named(branches: Sequence[Source]) -> str:
    """A set of branches in words: "lars at step 40, rate sqrt, 8,192 samples"."""
    told = branches[0].facts.branch or {}
    parent = PurePath(str(told.get("parent"))).name
    return f"{parent} at step {told.get('step')}, rate {told.get('lr_rule')}, {told.get('samples'):,} samples"


def _yardstick(ends: pd.DataFrame, tolerance: float, level: float) -> int:
    """The smallest batch size that doesn't cost beside any larger one; 0 where there is none at all."""
    sizes = [int(size) for size in sorted({*ends["batch_size"]})]
    return next(
        (
            size
            for place, size in enumerate(sizes)
            if not any(_cost(ends, size, larger, tolerance, level) == COSTS for larger in sizes[place + 1 :])
        ),
        0,
    )


def _cost(ends: pd.DataFrame, size: int, other: int, tolerance: float, level: float) -> str:
    """Whether a batch size costs, beside the loss of another one."""
    losses, others = ([*_by_seed(ends, one).values()] for one in (size, other))
    if not any(map(math.isfinite, others)):
        return UNKNOWN
    if not all(map(math.isfinite, losses)):
        return UNKNOWN if any(map(math.isfinite, losses)) else COSTS
    difference, line = _difference(ends, size, other, level), tolerance * Mean.of(others).value
    low, high = difference.value - difference.half_width, difference.value + difference.half_width
    return FREE if high <= line else COSTS if low > line else UNKNOWN


def _table(ends: pd.DataFrame, first: int, tolerance: float, level: float) -> pd.DataFrame:
    """`Branches.table`, from the loss at the end of each branch, with the yardstick ``first``."""
    columns = ["batch_size", "lr", "loss", "difference", "low", "high", "seeds", "diverged", "cost"]
    rows = []
    for size in sorted({*ends["batch_size"]}):
        group = ends[ends["batch_size"] == size]
        difference = _difference(ends, int(size), first, level)
        diverged = int((group["loss"] == math.inf).sum())
        low, high = difference.value - difference.half_width, difference.value + difference.half_width
        above = _cost(ends, int(size), first, tolerance, level)
        cost = YARDSTICK if size == first else WORSE if size < first else above
        finite = group.loc[group["loss"] < math.inf, "loss"]
        mean = float(finite.mean()) if len(finite) else math.inf
        row = (int(size), float(group["lr"].iloc[0]), mean, difference.value, low, high, difference.count)
        rows.append(dict(zip(columns, (*row, diverged, cost), strict=True)))
    return pd.DataFrame(rows, columns=columns)


def _difference(losses: pd.DataFrame, size: int, first: int, level: float) -> Mean:
    """The mean difference of two batch sizes' losses over the seeds that both have; of the first from itself none."""
    of_size, of_first = (_by_seed(losses, one) for one in (size, first))
    if size == first:
        return Mean(0.0, 0.0, len(of_first))
    # A branch that diverged has no difference from the other: `Mean` passes over what isn't finite.
    return Mean.of([loss - of_first[seed] for seed, loss in of_size.items() if seed in of_first], level)


def _by_seed(losses: pd.DataFrame, size: int) -> dict[Any, float]:
    """A batch size's losses at one number of samples, by seed."""
    there = losses["batch_size"].to_numpy() == size
    return dict(zip(losses["seed"].to_numpy()[there], losses["loss"].to_numpy()[there], strict=True))


def _course(losses: pd.DataFrame, first: int, level: float) -> pd.DataFrame:
    """`Branches.course`, with the yardstick ``first``."""
    rows: list[tuple[float, ...]] = []
    for samples, there in losses.groupby("samples", sort=True):
        sizes = sorted({*there["batch_size"]})
        if first not in sizes:
            continue  # the yardstick wasn't evaluated here
        for size in (size for size in sizes if size != first):
            mean = _difference(there, int(size), first, level)
            low, high = mean.value - mean.half_width, mean.value + mean.half_width
            rows.append((samples, size, mean.value, low, high, mean.count))  # type: ignore[arg-type]
    columns = ["samples", "batch_size", "difference", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns).astype({"samples": int, "batch_size": int, "seeds": int})


def _bounds(table: pd.DataFrame) -> tuple[tuple[float | None, float | None], list[str]]:
    """The largest free batch size below all that cost, the smallest that costs, and what contradicts them."""
    free = [float(size) for size, cost in zip(table["batch_size"], table["cost"], strict=True) if cost == FREE]
    costly = [float(size) for size, cost in zip(table["batch_size"], table["cost"], strict=True) if cost == COSTS]
    smallest = min(costly, default=None)
    below = [size for size in free if smallest is None or size < smallest]
    doubts = []
    if above := [size for size in free if size not in below]:
        doubts.append(
            f"batch {above[0]:,.0f} costs nothing, though batch {smallest:,.0f} does: cost should rise with the batch"
        )
    return (max(below, default=None), smallest), doubts


def _doubts(table: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    doubts = []
    first, others = table[table["cost"] == YARDSTICK], table[table["cost"] != YARDSTICK]
    for size, diverged, seeds in first[["batch_size", "diverged", "seeds"]].itertuples(index=False):
        doubts.append(f"batch {size:,} is the yardstick: whether it costs already isn't tested")
        if diverged:
            what = "all of its branches diverged" if diverged == seeds else "some of its branches diverged"
            doubts.append(f"batch {size:,} is the yardstick, and {what}: give smaller batches, or another rule")
    if worse := table.loc[table["cost"] == WORSE, "batch_size"].tolist():
        doubts.append(
            f"{batches(worse)} {'is' if len(worse) == 1 else 'are'} worse than a larger one, and no yardstick: the "
            f"rule for the rate, or the optimizer's state, doesn't suit so small a batch"
        )
    if len(others) and (others["seeds"] == 1).any() and (others["seeds"] < 2).all():
        doubts.append("one order of the data: there is no interval (give --seeds 3 or more)")
    parted = losses[losses["is_last"]].groupby("batch_size")["seed"].agg(frozenset)
    if parted.nunique() > 1:
        doubts.append("batch sizes have different seeds: only those that both have are compared")
    if some := others[(others["diverged"] > 0) & (others["cost"] == UNKNOWN)]["batch_size"].tolist():
        doubts.append(f"at {batches(some)} some branches diverged, and others didn't")
    return doubts


def _verdict(
    table: pd.DataFrame, free: float | None, costly: float | None, *, metric: str, tolerance: float, level: float
) -> Verdict:
    figures = (
        Figure(
            "largest_free", free, "sample", "largest batch size whose loss is within the tolerance, interval and all"
        ),
        Figure("smallest_costly", costly, "sample", "smallest batch size whose loss is beyond it, interval and all"),
        Figure("tolerance", tolerance, "share", "difference that counts as none, of the smallest batch's loss"),
        Figure("batch_sizes", len(table), "1", "batch sizes compared"),
    )
    if len(table) < 2:
        return Verdict(QUESTION, CANT_TELL, f"{counted(len(table), 'batch size')} is too few to compare.", figures)
    first = int(table.loc[table["cost"] == YARDSTICK, "batch_size"].iloc[0])
    last = int(table["batch_size"].iloc[-1])
    if first == last:
        reason = f"batch {last:,}, the largest, is better than the smaller ones for sure: try larger ones, too."
        return Verdict(QUESTION, CANT_TELL, reason, figures)
    # What costing means, once for all four answers.
    cost = f"a {metric} more than {100 * tolerance:g} % above that of batch {first:,} at equal samples"
    if costly is not None and free is not None:
        reason = f"batch {costly:,.0f} costs ({cost}); batch {free:,.0f} doesn't.{_at(table, costly, level)}"
        return Verdict(QUESTION, f"between {free:,.0f} and {costly:,.0f}", reason, figures)
    if costly is not None:
        reason = f"batch {costly:,.0f} costs ({cost}); of none below it is it known that it doesn't."
        return Verdict(QUESTION, f"{costly:,.0f} or below", f"{reason}{_at(table, costly, level)}", figures)
    if free is not None:
        reason = f"batch {free:,.0f} doesn't cost ({cost}); of none is it known that it does."
        return Verdict(QUESTION, f"above {free:,.0f}", f"{reason}{_at(table, free, level)}", figures)
    reason = f"of no batch is it known whether it costs ({cost})."
    return Verdict(QUESTION, CANT_TELL, f"{reason}{_at(table, last, level)}", figures)


def _at(table: pd.DataFrame, size: float, level: float) -> str:
    """The difference of a batch size with its interval, as a sentence."""
    row = table[table["batch_size"] == size].iloc[0]
    if row["cost"] == COSTS and row["diverged"] and not row["seeds"]:
        return f" All branches of batch {size:,.0f} diverged."
    if math.isnan(row["difference"]):
        return f" The difference at batch {size:,.0f} is unknown: no seed has a finite loss with both."
    ends = f"{percent(level)} interval {row['low']:.3g} to {row['high']:.3g}"
    interval = "unknown interval" if math.isnan(row["low"]) else ends
    told = f"{row['difference']:.3g} ({interval}, {counted(row['seeds'], 'seed')})"
    return f" The difference at batch {size:,.0f} is {told}."
