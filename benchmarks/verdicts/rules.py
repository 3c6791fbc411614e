"""The rule on warm-up: fitted on one half of the grid's data sets and models, judged on the other, and the reverse.

Runs of cells whose outcome is unknown count for nothing, and so do dead runs, of which the rule says that they are
dead. Every cell weighs the same, however many seeds it has.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.verdicts.grid import HERE
from benchmarks.verdicts.outcomes import CELL
from tvlars_probe.analyses.chance import LEARNED
from tvlars_probe.analyses.verdict import CANT_TELL
from tvlars_probe.analyses.warmup.model import SIDES, rule_of
from tvlars_probe.analyses.warmup.paired_gain import HARMFUL, NEEDED, NEVER_LEARNED, NO_DIFFERENCE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HALVES = (
    (("digits", "cnn"), ("fashion-mnist", "cnn-bn"), ("fashion-mnist", "mlp")),
    (("digits", "mlp"), ("fashion-mnist", "cnn")),
)
"""Data sets and models of which the rule is fitted on one half and judged on the other."""

LISTS: dict[str, dict[str, dict[str, bool]]] = {
    "without": {
        NO_DIFFERENCE: {"full_rate_step": True, "late_loss": True},
        NEEDED: {"early_setback": False, "full_rate_step": False, "late_loss": False},
    },
    "with": {
        NO_DIFFERENCE: {"full_rate_step": True, "late_loss": True},
        NEEDED: {"full_rate_step": False, "setback": False, "late_loss": False},
    },
}
"""By side and answer, the features of its rule, and whether each must be at most its line. Lines alone are fitted."""

OUTCOMES = (NEEDED, NO_DIFFERENCE, HARMFUL)

MOST_WRONG = 0.025
"""Share of an answer's cells that may be wrong where it is fitted: half of what is aimed at elsewhere."""

MOST_WRONG_ELSEWHERE = 0.05
"""Share of an answer that may be wrong on the half that it wasn't fitted on. The package gives no answer beyond it."""

LEAST_CELLS = 5
"""Fewest cells that an answer must rest on where it is fitted."""

LINES = tuple(float(f"{mantissa}e{exponent}") for exponent in range(-4, 2) for mantissa in (1, 1.5, 2, 3, 5, 7))
"""Lines that are tried."""


def cases(side: str) -> pd.DataFrame:
    """The runs of one side with their features and the outcome of their cell, a row each.

    ``is_dead`` says whether the run diverged or never learned.
    """
    features, truth = pd.read_parquet(HERE / "features.parquet"), pd.read_csv(HERE / "truth.csv")
    rate = "peak_lr"
    # As text: a rate that was written as decimals is no longer equal to itself.
    told = truth.assign(rate=truth[rate].map(_text))[["rate", *(c for c in CELL if c != rate), "outcome"]]
    runs = features.assign(rate=features[rate].map(_text))
    runs = runs[(runs["warmup_epochs"] == 0) == (side == "without")]
    table = runs.merge(told, on=["rate", *(c for c in CELL if c != rate)], validate="many_to_one")
    lost = (table["diverged"] == 1) | (table["accuracy_above_chance"].fillna(0.0) < LEARNED)
    table["is_dead"] = lost
    table["cell"] = table[["data", "model", "optimizer", "rate"]].agg(" ".join, axis=1)
    return table


def _text(rate: float) -> str:
    return f"{rate:.6g}"


def fit(table: pd.DataFrame, side: str) -> list[dict[str, Any]]:
    """The entries of one side in ``model.json``, without reliability: the lines of each answer that can be given.

    For each answer those lines are taken with which it is given in most cells, of those with which few enough are
    wrong. Of several, the strictest: the features of other runs will scatter.

    Args:
        table: rows of `cases`.
        side: one of `SIDES`.
    """
    known, entries = _known(table), []
    weights = _cell_weights(known)
    for answer, features in LISTS[side].items():
        wrong = (known["outcome"] != answer).to_numpy()
        # (lines, runs) for each feature: whether a run is on the right side.
        held = {name: _held(known[name].to_numpy(float), at_most) for name, at_most in features.items()}
        best: tuple[float, tuple[int, ...]] | None = None
        for places in itertools.product(range(len(LINES)), repeat=len(features)):
            said = np.logical_and.reduce([held[name][place] for name, place in zip(features, places, strict=True)])
            total = float(weights[said].sum())
            if total < LEAST_CELLS or weights[said & wrong].sum() > MOST_WRONG * total:
                continue
            strictness = tuple(-p if at_most else p for p, at_most in zip(places, features.values(), strict=True))
            if best is None or (total, strictness) > (best[0], best[1]):
                best, chosen = (total, strictness), places
        if best is not None:
            entries.append(
                {"answer": answer,
                 "conditions": [{"feature": name, "line": LINES[place], "at_most": at_most}
                                for (name, at_most), place in zip(features.items(), chosen, strict=True)]}
            )  # fmt: skip
    return entries


def _held(values: NDArray[np.float64], at_most: bool) -> NDArray[np.bool_]:
    lines = np.array(LINES)[:, None]
    held: NDArray[np.bool_] = values <= lines if at_most else values >= lines
    return held


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that rules can be fitted on, or judged by."""
    return table[table["outcome"].isin(OUTCOMES) & ~table["is_dead"]]


def _cell_weights(known: pd.DataFrame) -> NDArray[np.float64]:
    """A weight per run: those of a cell add up to one."""
    weights: NDArray[np.float64] = (1.0 / known.groupby("cell")["cell"].transform("size")).to_numpy(float)
    return weights


def judged(table: pd.DataFrame, entries: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of `cases` that are alive, with ``said``, the answer of the rules."""
    rules = [rule_of({**entry, "reliability": {"right": 0, "said": 0}}) for entry in entries]
    rows = table[~table["is_dead"]].copy()
    rows["said"] = [next((rule.answer for rule in rules if rule.holds(row)), CANT_TELL) for row in _records(rows)]
    return rows


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def of_halves(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Twice, the rows to fit on and those to judge."""
    pairs = pd.MultiIndex.from_frame(table[["data", "model"]])
    for here, there in itertools.permutations(HALVES):
        yield table[pairs.isin(here)], table[pairs.isin(there)]


def cross_judged(side: str) -> pd.DataFrame:
    """Each living run of one side with what the rule says of it that was fitted on the other half."""
    table = cases(side)
    return pd.concat([judged(rest, fit(half, side)) for half, rest in of_halves(table)])


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Said × was: numbers of runs, a row per answer; cells with an unknown outcome have a column of their own."""
    order = [NO_DIFFERENCE, NEEDED, CANT_TELL]
    columns = [*OUTCOMES, UNKNOWN]
    return pd.crosstab(rows["said"], rows["outcome"]).reindex(index=order, columns=columns, fill_value=0)


def counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """By answer, how often it was given of cells with a known outcome, and how often it was right."""
    known = rows[rows["outcome"].isin(OUTCOMES)]
    return {
        answer: {"right": int((known["outcome"][known["said"] == answer] == answer).sum()),
                 "said": int((known["said"] == answer).sum())}
        for answer in (NO_DIFFERENCE, NEEDED)
    }  # fmt: skip


def dead() -> dict[str, dict[str, int]]:
    """Of runs without warm-up that diverged or never learned: in how many warm-up was needed, among known outcomes."""
    table = cases("without")
    known = table[table["is_dead"] & table["outcome"].isin((*OUTCOMES, NEVER_LEARNED))]
    ends = {"diverged": known["diverged"] == 1, NEVER_LEARNED: known["diverged"] != 1}
    return {
        name: {"right": int((known["outcome"][ended] == NEEDED).sum()), "said": int(ended.sum())}
        for name, ended in ends.items()
    }


def is_trusted(counted: dict[str, int]) -> bool:
    """Whether an answer was right often enough of runs that it wasn't fitted on."""
    return counted["said"] > 0 and counted["said"] - counted["right"] <= MOST_WRONG_ELSEWHERE * counted["said"]


def model_text() -> str:
    """The text of ``model.json``: fitted on all of the grid, with the counts of the halves; only what `is_trusted`."""
    told: dict[str, Any] = {}
    for side in SIDES:
        counted = counts(cross_judged(side))
        told[side] = [
            {**entry, "reliability": counted[entry["answer"]]}
            for entry in fit(cases(side), side)
            if is_trusted(counted[entry["answer"]])
        ]
    return json.dumps({**told, "dead": dead()}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
