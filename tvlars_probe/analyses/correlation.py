"""Does sharpness at the end go with the generalisation gap, over several runs?

Large-batch training is said to end in sharp minima that generalise worse (Keskar et al. 2017). A rank correlation
tells whether a measure of sharpness orders runs as their gap does; Jiang et al. 2020 compare 40 measures in this way.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.intervals import rank_correlation
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.displays.displayed import ShownTable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from tvlars_probe.analyses.minimizer import Minimizer

QUESTION = "Do sharper minima generalise worse here?"

OUTCOMES = ("generalisation_gap", "test_error")
"""What each measure of sharpness is correlated with."""

NEAR = 1e-9
"""Percentage points within which outcomes are ties: a gap is a difference, with a rounding error of its own."""

EPOCH_COLUMNS = ("step", "train_eval_acc1", "test_acc1")
"""Columns of the table ``epochs`` that `correlate` needs."""

COLUMNS = (
    "measure", "outcome", "rho", "low", "high", "by_chance_share", "runs", "too_few", "why_no_interval",
)  # fmt: skip
"""Columns of `SharpnessCorrelation.table`."""

KINDS = {"adaptive": "adaptive", "hessian": "raw"}
"""By operator what a verdict calls its sharpness; of two that are on record for as many runs the first one decides."""

LIKELY = 0.05
"""No correlation is believed that chance gives in this share of all orders of the runs, or more.

Where many runs are tied, as seven without a gap and one with, the bootstrap's interval leaves out zero all the same.
"""


@dataclass(frozen=True, repr=False)
class SharpnessCorrelation(Answered):
    """Rank correlations over runs.

    Attributes:
        verdict: on adaptive sharpness and the generalisation gap; where more runs have raw sharpness, on that, which a
            change of scale moves.
        bn_mode: BatchNorm mode of the sharpness, that of the first run with any; modes are never joined.
        split: part of the data that the loss is of, that of the same run.
        on: what its curves were measured on, in words.
        left_out: runs measured in another BatchNorm mode, on other data or on samples of another size, each with these.
        runs: a row per remaining run: sharpness at the end by measure (``end_...``), ``generalisation_gap``
            (train_eval_acc1 − test_acc1, in percentage points), ``test_error`` (100 − test_acc1, in percent).
        table: a row per measure and outcome: Spearman's ``rho``; ``low`` and ``high``, its bootstrap interval, null
            where ``why_no_interval`` says why; ``by_chance_share``, the share of all orders of the runs in which ρ is
            at least as far from zero; and the number of ``runs``.
    """

    verdict: Verdict
    bn_mode: str | None
    split: str | None
    on: str
    left_out: tuple[str, ...]
    runs: pd.DataFrame
    table: pd.DataFrame

    @property
    def _of(self) -> str:
        return counted(len(self.runs), "run")

    def _tables(self) -> Iterable[ShownTable]:
        yield ShownTable.of_frame(self.table, headings.CORRELATION, "Rank correlations")


def correlate(
    results: Sequence[tuple[Minimizer, pd.DataFrame]], *, least_runs: int = 8, resamples: int = 2000, seed: int = 0
) -> SharpnessCorrelation:
    """Correlate each run's end sharpness with how it generalises.

    Args:
        results: per run its analysis and its table ``epochs``, of which the last row with a test accuracy counts.
            Runs measured in another BatchNorm mode than most, on other data, or on samples of another size than most
            of these are left out: the mean sharpness over samples falls with their size.
        least_runs: with fewer runs the verdict is "can't tell".
        resamples: draws of the bootstrap.
        seed: seed of the bootstrap.
    """
    # A run without sharpness neither chooses the mode nor is left out: its row shows that it wasn't measured.
    mode = mode_of_most([m for m, _ in results])
    alike = [m for m, _ in results if mode is not None and _mode(m) == mode]
    first = _of_most(alike, lambda m: frozenset(_sizes(m).items()))
    of_size = {} if first is None else _sizes(first)
    kept = [pair for pair in results if _mode(pair[0]) in (None, mode) and not _unlike(_sizes(pair[0]), of_size)]
    left_out = tuple(
        f"{m.facts.name} (BatchNorm mode {m.bn_mode} on {m.split} data)"
        if _mode(m) != mode
        else f"{m.facts.name} ({m.on})"
        for m, _ in results
        if not any(m is one for one, _ in kept)
    )
    runs = pd.DataFrame([_row(m, epochs) for m, epochs in kept])
    measures = [name for name in runs.columns if name.startswith("end_")]
    rows = []
    for measure in measures:
        for outcome in OUTCOMES:
            found = rank_correlation(
                runs[measure], runs[outcome], resamples=resamples, seed=seed, fewest=least_runs, near=NEAR
            )
            rows.append(
                {
                    "measure": measure.removeprefix("end_"),
                    "outcome": outcome,
                    "rho": found.rho,
                    "low": found.low,
                    "high": found.high,
                    "by_chance_share": found.chance,
                    "runs": found.count,
                    "too_few": found.count < least_runs,
                    "why_no_interval": found.why_no_interval or None,
                }
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    verdict = _verdict(table, least_runs)
    if left_out:
        named = some_of(left_out, most=4, room=400)
        reason = f"{verdict.reason} Left out, measured otherwise: {len(left_out)} of {len(results)} runs, {named}."
        verdict = dataclasses.replace(verdict, reason=reason)
    bn_mode, split = mode or (None, None)
    on = "" if first is None else first.on
    return SharpnessCorrelation(verdict, bn_mode, split, on, left_out, runs, table)


def mode_of_most(results: Sequence[Minimizer]) -> tuple[str, str] | None:
    """BatchNorm mode and split in which most curves were measured, of two the first; None where nothing was."""
    told = [m for m in results if _mode(m) is not None]
    # A run with a trace of the Hessian alone has a mode, and no curve to compare.
    most = _of_most([m for m in told if len(m.curves)] or told, _mode)
    return None if most is None else _mode(most)


def _of_most(results: Sequence[Minimizer], kind: Callable[[Minimizer], Hashable]) -> Minimizer | None:
    """The first result of the kind that most are of; of two kinds the first."""
    counts = Counter(map(kind, results))
    return max(results, key=lambda m: counts[kind(m)], default=None)


def _mode(m: Minimizer) -> tuple[str, str] | None:
    """BatchNorm mode and split of a run's sharpness; None where no sharpness is on record."""
    return None if m.bn_mode is None or m.split is None else (m.bn_mode, m.split)


def _sizes(m: Minimizer) -> dict[str, int]:
    """The size of the samples that each operator's curve was measured on, where it is told."""
    told = m.samples[m.samples["is_curve"] & m.samples["samples"].notna()]
    return dict(zip(told["operator"].astype(str), told["samples"].astype(int), strict=True))


def _unlike(sizes: dict[str, int], others: dict[str, int]) -> bool:
    return any(size != others.get(operator, size) for operator, size in sizes.items())


def _row(m: Minimizer, epochs: pd.DataFrame) -> dict[str, object]:
    epochs = epochs[epochs["test_acc1"].notna()]
    last = epochs.iloc[-1] if len(epochs) else pd.Series(dtype=float)
    train, test = (float(last.get(name, math.nan)) for name in ("train_eval_acc1", "test_acc1"))
    ends = {f"end_{row.operator}": row.end for row in m.summary.itertuples()}
    # ``further`` holds single layers and all modes, too: only what was measured as the curves were stands beside them.
    same = (m.further["scope"] == "all") & (m.further["bn_mode"] == m.bn_mode) & (m.further["split"] == m.split)
    further = m.further[same]
    for (measure, operator), rows in further.groupby(["measure", "operator"], dropna=False) if len(further) else ():
        name = measure if operator in (None, "none", "hessian") else f"{measure}_{operator}"
        # The last value, not a median over late steps: these are measured after training, at few checkpoints. Of one
        # step it is the latest, which a stable order leaves last.
        ends[f"end_{name}"] = rows.sort_values("step", kind="stable")["value"].iloc[-1]
    return {
        "run": m.facts.name,
        "optimizer": m.facts.optimizer,
        "method": m.facts.method,
        "seed": m.facts.seed,
        "bn_mode": m.bn_mode,
        "state": m.verdict.answer,
        **ends,
        "generalisation_gap": train - test,
        "test_error": 100 - test,
    }


def _verdict(table: pd.DataFrame, least_runs: int) -> Verdict:
    of_gap = {str(row["measure"]): row for row in table.to_dict("records") if row["outcome"] == "generalisation_gap"}
    kinds = [name for name in KINDS if name in of_gap]
    if not kinds:
        return Verdict(QUESTION, CANT_TELL, "no run has adaptive or raw sharpness on record.")
    kind = max(kinds, key=lambda name: int(of_gap[name]["runs"]))
    row, named = of_gap[kind], KINDS[kind]
    count = int(row["runs"])
    figures = (
        Figure("rho", float(row["rho"]), "1", f"Spearman's rank correlation of {named} end sharpness with the gap"),
        Figure("low", float(row["low"]), "1", "lower end of its bootstrap interval"),
        Figure("high", float(row["high"]), "1", "upper end"),
        Figure("chance", float(row["by_chance_share"]), "share", "share of all orders that ρ is as far from zero in"),
        Figure("runs", count, "1", "runs with both"),
    )
    rho, chance, why = float(row["rho"]), float(row["by_chance_share"]), row["why_no_interval"]
    told = f"ρ = {rho:.2f}"
    by_chance = f"by chance as far from zero in {100 * chance:.3g} % of all orders"
    if count < least_runs:
        few = f"{counted(count, 'run')} {'is' if count == 1 else 'are'} too few to say anything (at least {least_runs})"
        reason = f"{few}: {told}, {by_chance}." if math.isfinite(rho) else f"{few}."
        return Verdict(QUESTION, CANT_TELL, reason, figures)
    if not math.isfinite(rho):
        return Verdict(QUESTION, CANT_TELL, f"there is no ρ over {count} runs: {why}.", figures)
    low, high = float(row["low"]), float(row["high"])
    if why is None:
        span = f"{told} (95 % from {low:.2f} to {high:.2f}) over {count} runs"
    else:
        span = f"{told} over {count} runs, {by_chance}"
        low = high = rho  # of runs in perfect order there is no more to take an interval from: their chance decides
    if low <= 0 <= high:
        return Verdict(QUESTION, CANT_TELL, f"the interval doesn't leave out zero: {span}.", figures)
    if chance < LIKELY and low > 0:
        return Verdict(QUESTION, "yes", f"ends of more {named} sharpness have the larger gap: {span}.", figures)
    if chance < LIKELY and high < 0:
        return Verdict(
            QUESTION, "no, the reverse", f"ends of more {named} sharpness have the smaller gap: {span}.", figures
        )
    doubt = span if why is not None else f"{span}, but {by_chance}"
    return Verdict(QUESTION, CANT_TELL, f"chance may have ordered the runs: {doubt}.", figures)
