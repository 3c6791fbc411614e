"""Was warm-up needed? Runs with it and without side by side, paired by peak rate and seed.

Pairs answer by what came of them: nothing is told from the trace of a single run, and no rate speaks for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.warmup.paired_gain import NEVER_LEARNED, SIDES, UNKNOWN, outcomes_by_cell
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.displays.displayed import ShownTable

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from tvlars_probe.analyses.warmup.analysis import Warmup

QUESTION = "Was warm-up needed at its peak rate?"
DEPENDS = "depends on the rate"

MOST_TOLD = 6
"""Most cells that a reason goes through one by one."""


@dataclass(frozen=True, repr=False)
class WarmupPairs(Answered):
    """A comparison of runs that differ in warm-up.

    Attributes:
        verdict: the answer that all cells share whose rate can be asked about, "depends on the rate" where known ones
            differ, else "can't tell"; its reason tells each cell.
        cells: a row per cell, which is an optimizer, its settings and a peak rate, by
            `tvlars_probe.analyses.warmup.paired_gain.outcomes_by_cell`. Cells whose pairs differ in warm-up alone; if
            there are none, all of them.
        runs: a row per run: what its own analysis says, and its final accuracy.
        pairs: a row per pair of runs, one with warm-up and one without, of the same optimizer, settings, peak rate and
            seed. ``gain`` is the accuracy with warm-up minus the one without, in percentage points. A run that diverged
            has no weights left to predict by: it counts with the accuracy of equal guesses, and where the manifest
            doesn't tell the number of classes its pair has no gain. ``alone`` is true if they differ in warm-up alone:
            lars-warm is paired with cosine, for its rate decays, too. ``rescued`` is true if the run without diverged
            and the other didn't.
    """

    verdict: Verdict
    cells: pd.DataFrame
    runs: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def _of(self) -> str:
        return counted(len(self.runs), "run")

    def _tables(self) -> Iterable[ShownTable]:
        rate = "peak_lr" if "peak_lr" in self.cells else "lr"
        yield ShownTable.of_frame(self.cells, headings.warmup_cells(rate), "Peak rates")
        yield ShownTable.of_frame(self.runs, headings.WARMUP_RUNS, "Runs")


def pair_warmups(results: Sequence[tuple[Warmup, float | None]], *, by: str = "peak_lr") -> WarmupPairs:
    """Pair runs with and without warm-up by their settings, learning rate and seed.

    Each peak rate has an outcome of its own, by the gains of its seeds: `tvlars_probe.analyses.warmup.paired_gain`.
    Pairs that differ in warm-up alone are judged; if there are none, all pairs are.

    Args:
        results: per run its analysis and its final test accuracy in percent, None where it has none.
        by: the learning rate that both runs of a pair have: "peak_lr", or "lr" as it was given.
    """
    runs = pd.DataFrame([_row(result, accuracy) for result, accuracy in results])
    runs["settings"] = [_settings(result) for result, _ in results]
    keys = ["optimizer", "settings", "data", "model", "batch_size", by, "chance", "seed"]
    # A run whose trace ends within its warm-up (None) belongs to neither side.
    told = runs[runs["warmup_steps"].notna()]
    sides = told[told["warmup_steps"] == 0], told[told["warmup_steps"] > 0]
    wanted = ["run", "method", "schedule", "loss_rise", "accuracy", "diverged"]
    columns = [*keys, *(f"{name}_{side}" for side in SIDES for name in wanted)]
    pairs = pd.DataFrame(columns=columns)
    if all(map(len, sides)):
        pairs = sides[0].merge(sides[1], on=keys, suffixes=("_without", "_with"))[columns]
    # By rate as a number, not by the names of the runs, in which 20 stands before 6.
    pairs = pairs.sort_values(["optimizer", by, "seed"], kind="stable", ignore_index=True)
    bad = pairs["diverged_without"].astype(bool), pairs["diverged_with"].astype(bool)
    chance = pairs["chance"].astype(float)
    counted_as = [
        pairs[f"accuracy_{side}"].astype(float).mask(is_bad, chance) for side, is_bad in zip(SIDES, bad, strict=True)
    ]
    # Rounded, so that equal accuracies, which are shares of a finite test set, have a gain of zero.
    pairs["gain"] = (counted_as[1] - counted_as[0]).round(9)
    pairs["rescued"] = bad[0] & ~bad[1]
    # After its warm-up lars-warm decays as cosine does, so that these two differ in warm-up alone.
    schedules = pairs["schedule_without"].replace("cosine", "lars-warm")
    pairs["alone"] = schedules == pairs["schedule_with"]
    judged = pairs.assign(chance=chance, accuracy_without=counted_as[0], accuracy_with=counted_as[1])
    judged = judged[judged["alone"]] if judged["alone"].any() else judged
    cells = outcomes_by_cell(judged, keys[:-2])
    runs, pairs, cells = (table.drop(columns="settings", errors="ignore") for table in (runs, pairs, cells))
    return WarmupPairs(_verdict(cells, judged, by), cells, runs, pairs.drop(columns="chance"))


def _settings(w: Warmup) -> str:
    """The settings that both runs of a pair must share, besides optimizer, data, model, batch size, rate and seed."""
    # As text, for merging needs keys that can be hashed. A schedule's own settings differ within a pair by design.
    told = {name: value for name, value in w.facts.settings.items() if not name.startswith("schedule.")}
    if not isinstance(w.facts.config.get("optimizer"), dict) and w.peak_lr:
        # Of somebody's own loop only the trace tells what rates the other parameter groups had beside the first.
        shares = w.layers["peak_lr"] / w.peak_lr
        told["rates"] = [f"{share:.3g}" for share in dict.fromkeys(shares)]
    return repr(sorted((name, str(value)) for name, value in (told | {"lmbda": w.facts.lmbda}).items()))


def _row(w: Warmup, accuracy: float | None) -> dict[str, object]:
    f = w.facts
    return {
        "run": f.name,
        "method": f.method,
        "optimizer": f.optimizer,
        "schedule": f.schedule or "none",
        "data": f.data,
        "model": f.model,
        "batch_size": f.batch_size,
        "peak_lr": w.peak_lr,
        "lr": f.lr,
        "seed": f.seed,
        "answer": w.verdict.answer,
        "warmup_steps": w.warmup_steps,
        "suggested_steps": w.suggested_steps,
        "set_by": some_of(w.setting_layers) if w.setting_layers else "",
        "loss_rise": w.early.rise,
        "redundant_share": w.verdict["redundant_share"],
        "hot_share": w.verdict["hot_share"],
        "overwritten": w.verdict["overwritten"],
        "accuracy": accuracy,
        "chance": f.chance,
        "diverged": f.status == "diverged" or w.early.bad_step is not None,
    }


def _verdict(cells: pd.DataFrame, pairs: pd.DataFrame, by: str) -> Verdict:
    """The answer of all cells, where they have one; the reason tells each."""
    rescued = int(pairs["rescued"].sum())
    figures = [
        Figure("cells", len(cells), "1", "settings and peak rates that have runs with and without warm-up"),
        Figure("pairs", len(pairs), "1", "pairs of runs with the same settings, peak rate and seed"),
        Figure("rescued", rescued, "1", "of them, pairs of which the run without warm-up diverged, and only that one"),
    ]
    if not len(cells):
        reason = "no two of these runs differ in warm-up alone, at one peak rate and seed."
        return Verdict(QUESTION, CANT_TELL, reason, tuple(figures))
    if len(cells) == 1:
        one = cells.iloc[0]
        half = (one["high"] - one["low"]) / 2
        figures[:0] = [
            Figure("gain", one["gain"], "points", "test accuracy with warm-up minus without, mean over seeds"),
            Figure("half_width", half, "points", "half of Student's 95 % interval"),
            Figure("seeds", int(one["seeds"]), "1", "seeds in that mean"),
        ]
    answer = _shared({str(outcome) for outcome in cells["outcome"]})
    several = cells["optimizer"].nunique(dropna=False) > 1
    told = [_told(cell, by, several) for cell in cells.head(MOST_TOLD).to_dict("records")]
    if len(cells) > MOST_TOLD:
        told.append(f"{counted(len(cells) - MOST_TOLD, 'more cell')} in the table")
    further = "" if pairs["alone"].any() else "; lars-warm also lets the rate decay: compare it with --schedule cosine"
    reason = f"{'; '.join(told)}{further}."
    return Verdict(QUESTION, answer, reason, tuple(figures))


def _shared(outcomes: set[str]) -> str:
    """The answer of all cells: the outcome that each has whose rate can be asked about, or `DEPENDS` where they differ.

    It can't be told where one is unknown and the others don't differ.
    """
    known = outcomes - {UNKNOWN, NEVER_LEARNED}
    if len(known) > 1:
        return DEPENDS
    if UNKNOWN in outcomes:
        return CANT_TELL
    return next(iter(known), NEVER_LEARNED)


def _told(cell: Mapping[Hashable, Any], by: str, several: bool) -> str:
    """What came of a cell, in words; ``several`` says whether the optimizer has to be named."""
    rate = f"at {'peak' if by == 'peak_lr' else 'lr'} {cell[by]:g}"
    name = f"{cell['optimizer']} {rate}" if several else rate
    if cell["outcome"] == NEVER_LEARNED:
        accuracy = max(cell["without"], cell["with"])
        return f"{name}: nothing was learned with warm-up or without ({accuracy:.3g} % at best): no rate to ask about"
    rescued = cell["diverged_without"]
    saved = f"; {counted(rescued, 'run')} without warm-up diverged" if rescued else ""
    if not cell["seeds"]:
        return f"{name}: no pair has two test accuracies (test_acc1 of epochs){saved}"
    if cell["seeds"] == 1:
        return f"{name}: {cell['gain']:+.2f} points at one seed, too few to say: train more{saved}"
    interval = f"{cell['gain']:+.2f} points, 95 % [{cell['low']:+.2f}, {cell['high']:+.2f}] over {cell['seeds']} seeds"
    outcome = CANT_TELL if cell["outcome"] == UNKNOWN else cell["outcome"]
    return f"{name}: {outcome} ({interval}{saved})"
