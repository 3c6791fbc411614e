"""Runs with and without warm-up side by side, paired by peak rate and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.warmup import Warmup

QUESTION = "Does warm-up help at the same peak rate?"


@dataclass(frozen=True)
class WarmupPairs:
    """A comparison of runs that differ in warm-up.

    Attributes:
        verdict: over the pairs of one optimizer.
        runs: a row per run: what its own analysis says, and its final accuracy.
        pairs: a row per pair of runs with the same data, model, batch, peak rate and seed, one with warm-up and one
            without: ``gain`` is the accuracy with warm-up minus the one without, in percentage points.
    """

    verdict: Verdict
    runs: pd.DataFrame
    pairs: pd.DataFrame


def pair_warmups(results: Sequence[tuple[Warmup, float | None]], *, by: str = "peak_lr") -> WarmupPairs:
    """Pair runs by ``by`` ("peak_lr", or "lr" as it was given) and seed.

    Helped, or harmed, is said where Student's 95 % interval of the mean gain leaves out zero.

    Args:
        results: per run its analysis and its final test accuracy in percent, None where it has none.
        by: rate by which runs belong together.
    """
    runs = pd.DataFrame([_row(result, accuracy) for result, accuracy in results])
    keys = ["data", "model", "batch_size", by, "seed"]
    told = runs[runs["warmup_steps"].notna()]
    plain, warmed = told[told["warmup_steps"] == 0], told[told["warmup_steps"] > 0]
    if len(plain) and len(warmed):
        pairs = plain.merge(warmed, on=keys, suffixes=("_without", "_with"))
    else:
        pairs = pd.DataFrame(columns=[*keys, "run_without", "run_with", "accuracy_without", "accuracy_with"])
    wanted = ["run", "optimizer", "method", "loss_rise", "accuracy"]
    sides = [f"{name}_{side}" for side in ("without", "with") for name in wanted]
    pairs = pairs.reindex(columns=[*keys, *sides])
    pairs["gain"] = pairs["accuracy_with"].astype(float) - pairs["accuracy_without"].astype(float)
    own = pairs[pairs["optimizer_without"] == pairs["optimizer_with"]]
    # A run with warm-up may stand in several pairs: gains are averaged within one method, never across methods.
    return WarmupPairs(_verdict(own), runs, pairs)


def _row(w: Warmup, accuracy: float | None) -> dict[str, object]:
    f = w.facts
    return {
        "run": f.name,
        "method": f.method,
        "optimizer": f.optimizer,
        "data": f.data,
        "model": f.model,
        "batch_size": f.batch_size,
        "peak_lr": f.peak_lr,
        "lr": f.lr,
        "seed": f.seed,
        "answer": w.verdict.answer,
        "warmup_steps": w.warmup_steps,
        "suggested_steps": w.suggested_steps,
        "set_by": ", ".join(w.setting_layers[:3]),
        "loss_rise": w.early.rise,
        "redundant_share": w.verdict["redundant_share"],
        "hot_share": w.verdict["hot_share"],
        "overwritten": w.verdict["overwritten"],
        "accuracy": accuracy,
    }


def _verdict(pairs: pd.DataFrame) -> Verdict:
    gain = Mean.of(pairs["gain"].astype(float).tolist())
    figures = (
        Figure("gain", gain.value, "points", "test accuracy with warm-up minus without, mean over the pairs"),
        Figure("half_width", gain.half_width, "points", "half of Student's 95 % interval"),
        Figure("pairs", gain.count, "1", "pairs of runs with the same peak rate and seed"),
    )
    if gain.count == 0:
        return Verdict(
            QUESTION, CANT_TELL, "no two of these runs differ in warm-up alone, at one peak rate and seed.", figures
        )
    if gain.count == 1:
        return Verdict(QUESTION, CANT_TELL, f"one pair gained {gain.value:+.2g} points: train more seeds.", figures)
    span = f"{gain.value:+.2f} ± {gain.half_width:.2f} points over {gain.count} pairs"
    reason = f"warm-up changes the accuracy by {span}"
    if gain.value - gain.half_width > 0:
        return Verdict(QUESTION, "helps", f"{reason}.", figures)
    if gain.value + gain.half_width < 0:
        return Verdict(QUESTION, "harms", f"{reason}.", figures)
    return Verdict(QUESTION, CANT_TELL, f"{reason}, which doesn't leave out zero.", figures)
