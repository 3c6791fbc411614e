"""What each run of the study came to, a row each: what the answers are read from, and what is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.study import experiments
from benchmarks.study.experiments import METHODS, TVLARS, WARM
from tvlars_probe.analyses.of_runs import last_accuracy, minimizer_of, warmup_of
from tvlars_probe.analyses.replay_of_run import replay_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.trials import Trial

SEARCH, SEEDS, DELAYS, INITIALIZATIONS, VARIANTS = "search", "seeds", "delays", "initialisations", "variants"
"""What a run is for."""

SAME_RATE = 0.01
"""A replayed rate is another if it differs from the applied one by more than this share."""

Group = tuple[str, str, str, str, "list[Trial]"]
"""What runs are for, their case, method and variant, and the runs."""


def groups(cases: Sequence[str], folder: Path) -> Iterator[Group]:
    """All runs of some cases by what they are for, without the variants that a case doesn't have."""
    for case in cases:
        for method in experiments.methods(case):
            for setting in method.tried:
                yield SEARCH, case, method.name, "", experiments.search_of(case, method, setting, folder)
            yield SEEDS, case, method.name, "", experiments.trained(case, folder, method.name)
        for fall in experiments.DELAYS if case in experiments.DELAYED else ():
            yield DELAYS, case, TVLARS, f"{fall:g}", experiments.delayed(case, folder, fall)
        if case == experiments.VARIED:
            for method_name in METHODS:
                for way in experiments.INITIALIZATIONS[1:]:
                    runs = experiments.initialised(folder, method_name, way)
                    yield INITIALIZATIONS, case, method_name, way, runs
            for name, (base, _) in experiments.VARIANTS.items():
                yield VARIANTS, case, base, name, experiments.variant(folder, name)


def results_of(found: Iterable[Group]) -> pd.DataFrame:
    """A row per run.

    ``test_accuracy`` and ``held_out_accuracy`` are those of the last epoch in percent; of a run that diverged, that of
    equal guesses. ``peak_lr`` is the highest planned rate, ``lmbda`` TVLARS' delay factor. Of runs in which sharpness
    was measured, ``minimum`` is the answer of ``tvlars-probe minimizer`` and ``adaptive_end`` its last adaptive
    sharpness; of LARS with warm-up ``redundant_share`` is that of ``tvlars-probe warmup``, and ``clamped_share`` the
    share of steps and tensors whose rate a replay with both norms clamped at 10 changes.
    """
    return pd.DataFrame([_row(trial, *told) for *told, trials in found for trial in trials])


def _row(trial: Trial, purpose: str, case: str, method: str, variant: str) -> dict[str, Any]:
    source = Source(open_run(trial.path))
    facts, epochs = source.facts, source.epochs(["test_acc1", "val_acc1"])
    chance = 100.0 / (facts.classes or 1)
    accuracies = {"test_accuracy": last_accuracy(epochs), "held_out_accuracy": _last(epochs["val_acc1"])}
    lost = facts.status == "diverged"
    row: dict[str, Any] = {
        "purpose": purpose, "case": case, "method": method, "variant": variant, "seed": facts.seed,
        "peak_lr": facts.peak_lr, "lmbda": (trial.config.optimizer.lmbda if method == TVLARS else None),
        **{name: chance if lost or value is None else value for name, value in accuracies.items()},
        "diverged": lost,
    }  # fmt: skip
    if purpose in (SEEDS, INITIALIZATIONS):
        minimum = minimizer_of(source).verdict
        row |= {"minimum": minimum.answer, "adaptive_end": minimum["adaptive_end"]}
    if purpose == SEEDS and method == WARM:
        row["redundant_share"] = warmup_of(source)[0].verdict["redundant_share"]
        row["clamped_share"] = clamped_share(source)
    return row


def clamped_share(source: Source) -> float:
    """The share of a LARS run's steps and tensors whose rate changes where both norms are clamped at 10."""
    rows = replay_of(source, optimizer="tvlars", lmbda=0.0, alpha=0.1, eta=0.0011).rows()
    moved = rows[rows["applied_rate"] > 0]
    return float(((moved["replayed_rate"] / moved["applied_rate"] - 1).abs() > SAME_RATE).mean())


def _last(values: pd.Series[float]) -> float | None:
    known = values.dropna()
    return float(known.iloc[-1]) if len(known) else None
