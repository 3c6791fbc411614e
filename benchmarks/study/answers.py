"""The answers of the study: a table for each question, from the rows of `results_of`.

Every interval is Student's, of 95 %, over the seeds; a gain is of pairs of one seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.study import results
from benchmarks.study.experiments import LARS, METHODS, TVLARS, VARIANTS, VARIED, WARM
from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.warmup.paired_gain import HARMFUL, NEEDED, NO_DIFFERENCE, UNKNOWN, PairedGain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORDS = {NEEDED: "better", HARMFUL: "worse", NO_DIFFERENCE: "no difference", UNKNOWN: "can't tell"}
"""The outcome of a gain in words."""

STATES = ("trapped", "escaped", "never sharp", "can't tell")
"""Answers of ``tvlars-probe minimizer``."""


def gains(rows: pd.DataFrame, better: str, than: str) -> pd.DataFrame:
    """By case: the accuracy of two methods, each at its own best setting, and the gain of one over the other."""
    told = []
    for case, some in rows[rows["purpose"] == results.SEEDS].groupby("case", sort=False):
        by_method = {name: some[some["method"] == name].set_index("seed") for name in (than, better)}
        accuracy = {name: of_one["test_accuracy"] for name, of_one in by_method.items()}
        found = PairedGain.of((accuracy[better] - accuracy[than]).tolist())
        told.append(
            {"case": case}
            | {name: f"{interval(accuracy[name])} at {_setting(by_method[name])}" for name in (than, better)}
            | {"gain (points)": interval_of(found.gain), f"{better} is": WORDS[found.outcome]}
        )
    return pd.DataFrame(told)


def at_each_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """By case and method of LARS: the accuracy at each peak rate of the search, the mean of its runs."""
    searched = rows[(rows["purpose"] == results.SEARCH) & rows["method"].isin((LARS, WARM))]
    table = searched.pivot_table(
        index=["case", "method"], columns="peak_lr", values="test_accuracy", sort=True, dropna=False
    ).map("{:.1f}".format)
    table.columns = [f"{rate:g}" for rate in table.columns]
    order = [*dict.fromkeys(zip(searched["case"], searched["method"], strict=True))]
    return table.loc[order].reset_index()


def minima(rows: pd.DataFrame) -> pd.DataFrame:
    """By case and method: how many of its runs were trapped in a sharp minimum, escaped, or never saw one."""
    told = []
    for (case, method), some in rows[rows["purpose"] == results.SEEDS].groupby(["case", "method"], sort=False):
        answers = some["minimum"].tolist()
        told.append(
            {"case": case, "method": method}
            | {state: answers.count(state) for state in STATES}
            | {"adaptive sharpness at the end": interval(some["adaptive_end"].dropna())}
        )
    return pd.DataFrame(told)


def redundancy(rows: pd.DataFrame) -> pd.DataFrame:
    """By case: the share of the warm-up's steps and layers in which warm-up held back a layer that was below its
    settled ratio.
    """
    told = rows[(rows["purpose"] == results.SEEDS) & (rows["method"] == WARM)]
    return pd.DataFrame(
        [{"case": case, "redundant (%)": interval(100 * some["redundant_share"].dropna())}
         for case, some in told.groupby("case", sort=False)]
    )  # fmt: skip


def by_delay(rows: pd.DataFrame) -> pd.DataFrame:
    """By case and λ times the number of updates: the accuracy of TVLARS."""
    some = rows[rows["purpose"] == results.DELAYS]
    table = some.groupby(["case", "variant"], sort=False)["test_accuracy"].agg(interval).unstack(sort=False)
    table.columns = [f"λT = {name}" for name in table.columns]
    return table.reset_index()


def by_initialisation(rows: pd.DataFrame) -> pd.DataFrame:
    """By initialisation: the accuracy of each method, and the gain of TVLARS over LARS with warm-up."""
    some = rows[rows["case"] == VARIED]
    kept = some[some["purpose"].isin((results.SEEDS, results.INITIALIZATIONS))]
    told = []
    for name, of_one in kept.assign(variant=kept["variant"].replace("", "default")).groupby("variant", sort=False):
        accuracy = of_one.pivot_table(index="seed", columns="method", values="test_accuracy")
        found = PairedGain.of((accuracy[TVLARS] - accuracy[WARM]).tolist())
        told.append(
            {"initialisation": name}
            | {method: interval(accuracy[method]) for method in METHODS}
            | {"gain of TVLARS": interval_of(found.gain), "TVLARS is": WORDS[found.outcome]}
        )
    return pd.DataFrame(told)


def by_variant(rows: pd.DataFrame) -> pd.DataFrame:
    """By variant: its accuracy beside that of what it changes, and the gain."""
    some = rows[rows["case"] == VARIED]
    told = []
    for name, (base, _) in VARIANTS.items() if len(some) else ():
        own = some[some["variant"] == name].set_index("seed")["test_accuracy"]
        before = some[(some["purpose"] == results.SEEDS) & (some["method"] == base)].set_index("seed")["test_accuracy"]
        found = PairedGain.of((own - before).tolist())
        told.append(
            {"variant": name, "as it was": interval(before), "changed": interval(own),
             "gain (points)": interval_of(found.gain), "the variant is": WORDS[found.outcome]}
        )  # fmt: skip
    return pd.DataFrame(told)


def replayed(rows: pd.DataFrame) -> pd.DataFrame:
    """By case: the share of steps and tensors of LARS with warm-up whose rate a clamp of both norms at 10 changes."""
    told = rows[(rows["purpose"] == results.SEEDS) & (rows["method"] == WARM)]
    return pd.DataFrame(
        [{"case": case, "rates that a clamp at 10 changes (%)": interval(100 * some["clamped_share"].dropna())}
         for case, some in told.groupby("case", sort=False)]
    )  # fmt: skip


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "warm-up": lambda rows: gains(rows, WARM, LARS),
    "rates": at_each_rate,
    "minima": minima,
    "redundancy": redundancy,
    "tvlars": lambda rows: gains(rows, TVLARS, WARM),
    "initialisation": by_initialisation,
    "delay": by_delay,
    "replay": replayed,
    "variants": by_variant,
}
"""By the name that a table has in docs/evidence/study.md, what makes it."""


def _setting(rows: pd.DataFrame) -> str:
    """The setting that a method was chosen with, in words."""
    first = rows.iloc[0]
    return f"{first['peak_lr']:g}" + (f", λ {first['lmbda']:g}" if pd.notna(first["lmbda"]) else "")


def interval(values: Sequence[float] | pd.Series[float]) -> str:
    """Mean and half of Student's 95 % interval: "83.10 ± 0.40"."""
    return interval_of(Mean.of([*values]))


def interval_of(mean: Mean) -> str:
    """The same of a mean; a dash where there is nothing to average."""
    if not mean.count:
        return "–"
    return f"{mean.value:.2f} ± {mean.half_width:.2f}" if mean.count > 1 else f"{mean.value:.2f}"
