"""How large may the batch be? Three answers side by side, and what fails where they disagree.

- *noise scale*: B_simple from the gradient's noise at one moment (`tvlars_probe.analyses.batches.noise_scale`);
- *time to target*: B_crit = E_min/S_min from steps and samples to one loss, over a sweep of batches
  (`tvlars_probe.analyses.batches.time_to_target`);
- *branches*: runs from one checkpoint with several batches (`tvlars_probe.analyses.batches.branches`).

McCandlish et al. 2018 (arXiv 1812.06162) argue that the first two are about equal. They rest on different assumptions,
so that a disagreement tells which one to doubt. Branches answer another question, where more samples *begin* to cost:
by the law E = E_min·(1 + B/B_crit) a loss is a few per cent worse at a small share of B_crit already. What costs
nothing is below B_crit, therefore, and what costs needn't be above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.batches.branches import branches_of, is_branch
from tvlars_probe.analyses.batches.noise_verdict import interval_text
from tvlars_probe.analyses.batches.time_to_target import time_to_target
from tvlars_probe.analyses.of_runs import noise_scale_of
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.displays.displayed import ShownTable
from tvlars_probe.errors import TraceError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvlars_probe.analyses.batches.branches import Branches
    from tvlars_probe.analyses.batches.noise_scale import NoiseScale
    from tvlars_probe.analyses.batches.time_to_target import TimeToTarget
    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.source import Source

QUESTION = "How large may the batch be?"

NOISE, TIME, BRANCHES = "noise scale", "time to target", "branches"
"""The three answers."""

DISAGREE = "the answers disagree"

TABLE_COLUMNS = ("answer", "of", "step", "batch", "value", "low", "high", "unit", "told")
"""Columns of `BatchSizeAnswers.table`."""

ASSUMES = {
    NOISE: "the noise scale assumes SGD with small steps and a Hessian that curves alike in all directions, and it is "
    "of one moment: it grows as the loss falls",
    TIME: "time to target is of the whole way to the target, and needs the best rate at each batch: a grid of rates "
    "that is coarse or ends early moves it",
    BRANCHES: "branches are of one moment, under one rule for the rate: where that rule doesn't suit the optimizer, "
    "they answer for the rule (arXiv 2505.23971); where samples begin to cost lies below the critical batch",
}
"""By answer, what it rests on: what to doubt where it disagrees with another."""

NO_NOISE = (
    "no gradient noise is on record: train with --noise or --noise-every N, measure it afterwards by tvlars-probe "
    "batch-size RUN --checkpoint last, or record a loop of your own with record(noise=True)"
)

_NO_SWEEP = "no sweep over batches was given (tvlars-probe sweep with several --batch-size)"
_NO_BRANCHES = "no branches were given (tvlars-probe branch RUN --checkpoint STEP --batch-sizes ...)"


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchSizeAnswers(Answered):
    """The three answers, as far as the runs hold them.

    Attributes:
        noise: the noise scale of each run that has it on record.
        time: steps and samples to a target; None where the runs are no sweep over batches.
        branches: branched runs from one checkpoint; None where there are none.
        table: a row per answer, of the noise scale a row per run: ``of`` is the run or the number of runs, ``step`` the
            moment (null: the whole way), ``batch`` the run's own; the batch size where more samples stop paying is
            ``value``, with its 95 % interval from ``low`` to ``high`` (NaN unknown, infinite where it has no upper
            end). Of branches it lies between the largest batch that costs nothing and the smallest that costs, and
            there is no value. ``told`` is all this in words.
        verdict: the range that all answers share, or that they disagree, or can't tell, as for several models.
        missing: for each answer that isn't there, why not.
        doubts: sentences on what may mislead.
    """

    noise: tuple[NoiseScale, ...]
    time: TimeToTarget | None
    branches: Branches | None
    table: pd.DataFrame
    verdict: Verdict
    missing: tuple[str, ...]
    doubts: tuple[str, ...]

    def _tables(self) -> Iterable[ShownTable]:
        yield ShownTable.of_frame(self.table, headings.BATCH_SIZE, "Answers")


def critical_batch_of(
    sources: Sequence[Source], *, target: float | None = None, window: int | None = None, seed: int = 0
) -> BatchSizeAnswers:
    """`batch_size_of` for somebody who has asked.

    Raises:
        TraceError: the runs allow none of the ways.
    """
    result = batch_size_of(sources, target=target, window=window, seed=seed)
    if not len(result.table):
        of = some_of([str(source.trace.path) for source in sources])
        raise TraceError(f"{of} can't tell how large the batch may be. {'. '.join(result.missing)}")
    return result


def batch_size_of(
    sources: Sequence[Source], *, target: float | None = None, window: int | None = None, seed: int = 0
) -> BatchSizeAnswers:
    """Answer in all the ways that these runs allow.

    Args:
        sources: runs; branched ones among them are told apart.
        target: the loss to reach; see `tvlars_probe.analyses.batches.time_to_target.time_to_target`.
        window: recorded steps that the noise scale is averaged over; see
            `tvlars_probe.analyses.batches.noise_scale.window_of`.
        seed: seed of the bootstrap.

    Raises:
        UserError: the window is too small.
    """
    noise = tuple(
        found
        for source in sources
        if not source.lacks("noise") and len((found := noise_scale_of(source, window=window)).curve)
    )
    branched = [source for source in sources if is_branch(source)]
    ordinary = [source for source in sources if not is_branch(source)]
    missing, time, branches = [] if noise else [f"{NOISE}: {NO_NOISE}"], None, None
    if len({source.facts.batch_size for source in ordinary}) < 2:
        missing.append(f"{TIME}: {_NO_SWEEP}")
    else:
        try:
            time = time_to_target(ordinary, target=target, seed=seed)
        except UserError as error:
            missing.append(f"{TIME}: {error}")
    if not branched:
        missing.append(f"{BRANCHES}: {_NO_BRANCHES}")
    else:
        try:
            branches = branches_of(sources)
        except UserError as error:
            missing.append(f"{BRANCHES}: {error}")
    answering = [result.facts for result in noise]
    answering += [source.facts for source in ordinary] if time is not None else []
    answering += [source.facts for source in branched] if branches is not None else []
    return side_by_side(
        noise,
        time,
        branches,
        missing=missing,
        runs=len(ordinary),
        branched=len(branched),
        mixed=_mixed(answering),
    )


def _mixed(answering: Sequence[RunFacts]) -> str | None:
    """In what the runs that answer differ so that one batch size isn't for all of them; None where they don't."""
    for name, told in (("models", "model"), ("data sets", "data")):
        found = {value for facts in answering if (value := getattr(facts, told)) is not None}
        if len(found) > 1:
            return f"the runs are of several {name} ({some_of(sorted(map(str, found)))})"
    return None


def side_by_side(
    noise: Sequence[NoiseScale],
    time: TimeToTarget | None,
    branches: Branches | None,
    *,
    missing: Sequence[str] = (),
    runs: int = 0,
    branched: int = 0,
    mixed: str | None = None,
) -> BatchSizeAnswers:
    """Put the answers beside each other.

    Args:
        noise: the noise scales, one per run.
        time: steps and samples to a target, of ``runs`` runs.
        branches: branched runs, ``branched`` of them.
        missing: why answers aren't there.
        runs: number of runs of the sweep.
        branched: number of branched runs.
        mixed: why no one batch size can be the answer for all runs.
    """
    rows = [_of_noise(result) for result in noise]
    if time is not None:
        b = time.b_crit
        told = interval_text(b.value, b.low, b.high, level=time.level)
        rows.append(_row(TIME, counted(runs, "run"), None, None, b.value, b.low, b.high, told=told))
    if branches is not None:
        rows.append(_of_branches(branches, branched))
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    apart = _apart(table)
    doubts = [f"{result.facts.name}: {doubt}" for result in noise for doubt in result.doubts]
    for name, other in ((TIME, time), (BRANCHES, branches)):
        doubts += [f"{name}: {doubt}" for doubt in ([] if other is None else other.doubts)]
    told_apart = [] if mixed else [name for pair in apart for name in pair]
    doubts += [ASSUMES[name] for name in (NOISE, TIME, BRANCHES) if name in told_apart]
    if "tokens" in {*table["unit"]}:
        doubts.append("a noise scale in tokens isn't compared with answers in samples")
    return BatchSizeAnswers(
        noise=tuple(noise),
        time=time,
        branches=branches,
        table=table,
        verdict=_verdict(table, apart) if mixed is None else _of_mixed(table, mixed),
        missing=tuple(missing),
        doubts=tuple(dict.fromkeys(doubts)),
    )


def _row(
    answer: str,
    of: str,
    step: int | None,
    batch: float | None,
    value: float,
    low: float,
    high: float,
    unit: str = "samples",
    told: str | None = None,
) -> dict[str, object]:
    entry = (answer, of, step, batch, value, low, high, unit, told or interval_text(value, low, high))
    return dict(zip(TABLE_COLUMNS, entry, strict=True))


def _of_noise(result: NoiseScale) -> dict[str, object]:
    last = result.last
    assert last is not None  # results without rows aren't kept
    value, low, high = (float(last[name]) for name in ("simple_batch", "low", "high"))
    return _row(NOISE, result.facts.name, int(last["step"]), result.batch, value, low, high, result.unit)


def _of_branches(result: Branches, count: int) -> dict[str, object]:
    free, costly = result.largest_free, result.smallest_costly
    low, high = 0.0 if free is None else float(free), math.inf if costly is None else float(costly)
    if free is None and costly is None:
        low = high = math.nan
        told = "unknown"
    else:
        parts = [
            *([] if free is None else [f"{free:,.0f} costs nothing that can be told"]),
            *([] if costly is None else [f"{costly:,.0f} costs for sure"]),
        ]
        told = ", ".join(parts)
    return _row(BRANCHES, counted(count, "run"), result.step, None, math.nan, low, high, told=told)


def _spans(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Of each answer that has an interval, its ends; of noise scales in samples, the span of all runs.

    Beside other answers branches tell of the critical batch only that it is above what costs nothing.
    """
    told = table[(table["unit"] == "samples") & table["low"].notna() & table["high"].notna()]
    found = told.groupby("answer").agg({"low": "min", "high": "max"})
    spans = {
        name: (float(found.loc[name, "low"]), float(found.loc[name, "high"]))  # type: ignore[arg-type]
        for name in (NOISE, TIME, BRANCHES)
        if name in found.index
    }
    return spans | ({BRANCHES: (spans[BRANCHES][0], math.inf)} if BRANCHES in spans and len(spans) > 1 else {})


def _apart(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of answers whose intervals have nothing in common."""
    spans = [*_spans(table).items()]
    return [
        (name, other)
        for place, (name, (low, high)) in enumerate(spans)
        for other, (its_low, its_high) in spans[place + 1 :]
        if low > its_high or high < its_low
    ]


def _of_mixed(table: pd.DataFrame, mixed: str) -> Verdict:
    return Verdict(QUESTION, CANT_TELL, f"{mixed}, and each answer is for its own: {_each(table)}.")


def _each(table: pd.DataFrame) -> str:
    """The answers in words, up to six of them."""
    each = "; ".join(
        f"{row['answer']} ({row['of']}{_at(row['step'])}): {row['told']}" for row in table.to_dict("records")[:6]
    )
    more = len(table) - 6
    return each + (f"; and {counted(more, 'further answer')}" if more > 0 else "")


def _verdict(table: pd.DataFrame, apart: Sequence[tuple[str, str]]) -> Verdict:
    spans, each = _spans(table), _each(table)
    if not spans:
        reason = f"{each}." if len(table) else "none of the three answers is on record."
        return Verdict(QUESTION, CANT_TELL, reason)
    low, high = max(low for low, _ in spans.values()), min(high for _, high in spans.values())
    if apart:
        pairs = ", ".join(f"{a} and {b}" for a, b in apart)
        return Verdict(QUESTION, DISAGREE, f"the intervals of {pairs} lie apart: {each}.")
    figures = (
        Figure("low", low, "samples", "lower end of the range that the answers share"),
        Figure("high", high if math.isfinite(high) else None, "samples", "upper end; unknown where it is open"),
    )
    if low <= 0 and high == math.inf:
        return Verdict(QUESTION, CANT_TELL, f"{each}.", figures)
    how = "one answer" if len(spans) == 1 else f"the {len(spans)} answers share this range"
    return Verdict(QUESTION, _range_text(low, high), f"{how}: {each}.", figures)


def _range_text(low: float, high: float) -> str:
    if high == math.inf:
        return f"{low:,.3g} samples at least" if low < 1000 else f"{low:,.0f} samples at least"
    ends = [f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in (low, high)]
    return f"{ends[0]} to {ends[1]} samples" if low > 0 else f"{ends[1]} samples at most"


def _at(step: object) -> str:
    return "" if step is None or step != step else f", step {step:,.0f}"
