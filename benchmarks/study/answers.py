"""The answers of the study, read from its runs: a table for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.study import experiments
from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.of_runs import last_accuracy, minimizer_of, warmup_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.warmup.paired_gain import HARMFUL, NEEDED, NO_DIFFERENCE, UNKNOWN, PairedGain
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.trials import Trial

WORDS = {NEEDED: "better", HARMFUL: "worse", NO_DIFFERENCE: "no difference", UNKNOWN: "can't tell"}
"""The outcome of a gain in words."""

STATES = ("trapped", "escaped", "never sharp", "can't tell")


def accuracies(trials: Sequence[Trial]) -> list[float]:
    """The last test accuracy of each run in percent; that of equal guesses where it diverged."""
    found = []
    for trial in trials:
        source = Source(open_run(trial.path))
        accuracy = last_accuracy(source.epochs(["test_acc1"]))
        lost = source.facts.status == "diverged" or accuracy is None
        found.append(100.0 / (source.facts.classes or 1) if lost or accuracy is None else accuracy)
    return found


def of_methods(case: str, folder: Path) -> dict[str, list[Trial]]:
    """The runs of each method in a case, by seed."""
    trials, count = experiments.trained(case, folder), len(experiments.SEEDS)
    names = [method.name for method in experiments.methods(case)]
    return {name: trials[place * count : (place + 1) * count] for place, name in enumerate(names)}


def setting_text(setting: experiments.Options, case: str, method: str) -> str:
    """The setting in words: peak rate, and λ where it has one."""
    batch = int(case.rsplit("-", 1)[1])
    peak = float(setting["lr"]) * (1 if method == "TVLARS" else batch / 256)
    return f"{peak:g}" + (f", λ {setting['lmbda']}" if "lmbda" in setting else "")


def gains(cases: Sequence[str], folder: Path, better: str, than: str) -> pd.DataFrame:
    """By case: the mean accuracy of two methods and the gain of one over the other, by seed, with its outcome."""
    rows = []
    for case in cases:
        runs, methods = of_methods(case, folder), {m.name: m for m in experiments.methods(case)}
        found = {name: accuracies(runs[name]) for name in (than, better)}
        gain = PairedGain.of([ours - theirs for theirs, ours in zip(*found.values(), strict=True)])
        settings = {name: experiments.chosen(case, methods[name], folder) for name in found}
        told = {
            name: f"{interval(values)} at {setting_text(settings[name], case, name)}" for name, values in found.items()
        }
        rows.append(
            {"case": case, **told, "gain (points)": interval_of(gain.gain), f"{better} is": WORDS[gain.outcome]}
        )
    return pd.DataFrame(rows)


def minima(cases: Sequence[str], folder: Path) -> pd.DataFrame:
    """By case and method: of its runs, how many were trapped in a sharp minimum, escaped, or never saw one."""
    rows = []
    for case in cases:
        for name, trials in of_methods(case, folder).items():
            results = [minimizer_of(Source(open_run(trial.path))) for trial in trials]
            answers = [result.verdict.answer for result in results]
            ends = [value for result in results if (value := result.verdict["adaptive_end"]) is not None]
            rows.append({"case": case, "method": name, **{state: answers.count(state) for state in STATES},
                         "adaptive sharpness at the end": interval(ends)})  # fmt: skip
    return pd.DataFrame(rows)


def redundancy(cases: Sequence[str], folder: Path) -> pd.DataFrame:
    """By case: in what share of the warm-up's steps and layers a layer below its settled ratio was held back."""
    rows = []
    for case in cases:
        trials = of_methods(case, folder)["LARS with warm-up"]
        shares = [warmup_of(Source(open_run(trial.path)))[0].verdict["redundant_share"] for trial in trials]
        told = [100 * share for share in shares if share is not None]
        rows.append({"case": case, "redundant (%)": interval(told)})
    return pd.DataFrame(rows)


def by_delay(cases: Sequence[str], folder: Path) -> pd.DataFrame:
    """By case and λ times the number of updates: the accuracy of TVLARS."""
    count, rows = len(experiments.SEEDS), []
    for case in cases:
        values = accuracies(experiments.delayed(case, folder))
        rows.append(
            {"case": case}
            | {
                f"λT = {fall:g}": interval(values[i * count : (i + 1) * count])
                for i, fall in enumerate(experiments.DELAYS)
            }
        )
    return pd.DataFrame(rows)


def by_initialisation(folder: Path) -> pd.DataFrame:
    """By method and initialisation: the accuracy in one case."""
    count, others = len(experiments.SEEDS), accuracies(experiments.initialised(folder))
    rows = []
    for place, (name, trials) in enumerate(of_methods(experiments.VARIED, folder).items()):
        own = others[2 * place * count : 2 * (place + 1) * count]
        parts = (accuracies(trials), own[:count], own[count:])
        rows.append({"method": name} | dict(zip(experiments.INITIALIZATIONS, map(interval, parts), strict=True)))
    return pd.DataFrame(rows)


def interval(values: Sequence[float]) -> str:
    """Mean and half of Student's 95 % interval: "83.1 ± 0.4"."""
    return interval_of(Mean.of(values))


def interval_of(mean: Mean) -> str:
    """The same of a mean."""
    return f"{mean.value:.2f} ± {mean.half_width:.2f}" if mean.count > 1 else f"{mean.value:.2f}"
