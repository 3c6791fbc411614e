"""Runs with and without warm-up side by side, paired by peak rate and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.warmup import Warmup

QUESTION = "Does warm-up help at the same peak rate?"


@dataclass(frozen=True)
class WarmupPairs:
    """A comparison of runs that differ in warm-up.

    Attributes:
        verdict: the answer over the pairs, with a reason for each optimizer.
        runs: a row per run: what its own analysis says, and its final accuracy.
        pairs: a row per pair of runs, one with warm-up and one without, of the same optimizer, settings, peak rate and
            seed. ``gain`` is the accuracy with warm-up minus the one without, in percentage points. ``alone`` is true
            if they differ in warm-up alone: lars-warm is paired with cosine, for its rate decays, too. ``rescued`` is
            true if the run without diverged and the other didn't; such a pair has no gain.
    """

    verdict: Verdict
    runs: pd.DataFrame
    pairs: pd.DataFrame


def pair_warmups(results: Sequence[tuple[Warmup, float | None]], *, by: str = "peak_lr") -> WarmupPairs:
    """Pair runs with and without warm-up by their settings, learning rate and seed.

    Pairs that differ in warm-up alone are judged; if there are none, all pairs are. Gains are averaged per seed, then
    over the seeds. Warm-up helps or harms an optimizer if Student's 95 % interval of that mean leaves out zero. Without
    any gain to average, it helps if it rescued a run.

    Args:
        results: per run its analysis and its final test accuracy in percent, None where it has none.
        by: the learning rate that both runs of a pair have: "peak_lr", or "lr" as it was given.
    """
    runs = pd.DataFrame([_row(result, accuracy) for result, accuracy in results])
    runs["settings"] = [_settings(result) for result, _ in results]
    keys = ["optimizer", "settings", "data", "model", "batch_size", by, "seed"]
    # A run whose trace ends within its warm-up (None) belongs to neither side.
    told = runs[runs["warmup_steps"].notna()]
    sides = told[told["warmup_steps"] == 0], told[told["warmup_steps"] > 0]
    wanted = ["run", "method", "schedule", "loss_rise", "accuracy", "diverged"]
    columns = [*keys, *(f"{name}_{side}" for side in ("without", "with") for name in wanted)]
    pairs = pd.DataFrame(columns=columns)
    if all(map(len, sides)):
        pairs = sides[0].merge(sides[1], on=keys, suffixes=("_without", "_with"))[columns]
    pairs = pairs.drop(columns="settings")
    bad = pairs["diverged_without"].astype(bool), pairs["diverged_with"].astype(bool)
    gain = pairs["accuracy_with"].astype(float) - pairs["accuracy_without"].astype(float)
    # The accuracy of a run that diverged is no measure of its settings: a rescue is counted instead.
    pairs["gain"] = gain.mask(bad[0] | bad[1])
    pairs["rescued"] = bad[0] & ~bad[1]
    # After its warm-up lars-warm decays as cosine does, so that these two differ in warm-up alone.
    schedules = pairs["schedule_without"].replace("cosine", "lars-warm")
    pairs["alone"] = schedules == pairs["schedule_with"]
    return WarmupPairs(_verdict(pairs), runs.drop(columns="settings"), pairs)


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
        "diverged": f.status == "diverged" or w.early.bad_step is not None,
    }


def _verdict(pairs: pd.DataFrame) -> Verdict:
    used = pairs[pairs["alone"]] if pairs["alone"].any() else pairs
    # Pairs of one seed are no independent draws: they are averaged before the interval is taken.
    by_seed = used.groupby(["optimizer", "seed"], dropna=False)["gain"].mean()
    gain, rescued = Mean.of(by_seed.tolist()), int(used["rescued"].sum())
    figures = (
        Figure(
            "gain", gain.value, "points", "test accuracy with warm-up minus without, mean over optimizers and seeds"
        ),
        Figure("half_width", gain.half_width, "points", "half of Student's 95 % interval"),
        Figure("seeds", gain.count, "1", "optimizers and seeds in that mean"),
        Figure("pairs", len(used), "1", "pairs of runs with the same settings, peak rate and seed"),
        Figure("rescued", rescued, "1", "of them, pairs of which the run without warm-up diverged, and only that one"),
    )
    if not len(used):
        reason = "no two of these runs differ in warm-up alone, at one peak rate and seed."
        return Verdict(QUESTION, CANT_TELL, reason, figures)
    judged = {str(name): _judged(some) for name, some in used.groupby("optimizer", dropna=False)}
    answers = {answer for answer, _ in judged.values()}
    told = [reason if len(judged) == 1 else f"{name}: {reason}" for name, (_, reason) in judged.items()]
    further = "" if used["alone"].any() else "; lars-warm also lets the rate decay: compare it with --schedule cosine"
    return Verdict(QUESTION, answers.pop() if len(answers) == 1 else CANT_TELL, f"{'; '.join(told)}{further}.", figures)


def _judged(pairs: pd.DataFrame) -> tuple[str, str]:
    """Answer and reason for the pairs of one optimizer."""
    gain = Mean.of(pairs.groupby("seed", dropna=False)["gain"].mean().tolist())
    rescued = int(pairs["rescued"].sum())
    saved = f"{rescued} of {len(pairs)} runs without warm-up diverged where the one with it did not"
    if gain.count == 0:
        return ("helps", saved) if rescued else (CANT_TELL, "no pair has two test accuracies (test_acc1 of epochs)")
    if gain.count == 1:
        reason = f"at one seed it gained {gain.value:+.2g} points: train more"
    else:
        reason = f"it changes the accuracy by {gain.value:+.2f} ± {gain.half_width:.2f} points over {gain.count} seeds"
    reason += f", and {saved}" if rescued else ""
    if gain.count > 1 and gain.value - gain.half_width > 0:
        return "helps", reason
    if gain.count > 1 and gain.value + gain.half_width < 0:
        # A warm-up that rescued a run isn't called harmful, whatever the other pairs lose.
        return ("harms" if not rescued else CANT_TELL), reason
    return CANT_TELL, reason + (", which doesn't leave out zero" if gain.count > 1 else "")
