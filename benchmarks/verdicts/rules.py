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
from sklearn.linear_model import LogisticRegression

from benchmarks.verdicts.grid import HERE
from benchmarks.verdicts.outcomes import CELL
from tvlars_probe.analyses.verdict import CANT_TELL
from tvlars_probe.analyses.warmup.model import SIDES, Model
from tvlars_probe.analyses.warmup.paired_gain import HARMFUL, LEARNED, NEEDED, NEVER_LEARNED, NO_DIFFERENCE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HALVES = (
    (("digits", "cnn"), ("fashion-mnist", "cnn-bn"), ("fashion-mnist", "mlp")),
    (("digits", "mlp"), ("fashion-mnist", "cnn")),
)
"""Data sets and models of which the rule is fitted on one half and judged on the other."""

FEATURES: dict[str, dict[str, tuple[float, float]]] = {
    "without": {
        "early_update_ratio": (1e-4, 1e2),
        "full_rate_step": (1e-4, 1e2),
        "early_setback": (1e-2, 1e1),
        "late_loss": (1e-4, 1e0),
    },
    "with": {
        "full_rate_step": (1e-4, 1e2),
        "update_ratio_peak": (1e-4, 1e2),
        "setback": (1e-2, 1e1),
        "late_loss": (1e-4, 1e0),
    },
}
"""By side, the features of the model and the range that each is kept within."""

OUTCOMES = (NEEDED, NO_DIFFERENCE, HARMFUL)
ANSWERS = (NEEDED, NO_DIFFERENCE)
"""What the rule may say of a run that has learned, beside "can't tell"."""

RIDGE = 1.0
"""Inverse strength of the penalty on the weights, whose features have unit variance."""

MOST_WRONG = 0.025
"""Share of answers that may be wrong where the rule is fitted: half of what is aimed at elsewhere."""

LEAST = tuple(np.round(np.arange(0.5, 0.99, 0.02), 2).tolist())
"""Probabilities from which an answer may be given; the lowest that keeps `MOST_WRONG` is taken."""


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


def fit(table: pd.DataFrame, side: str) -> dict[str, Any]:
    """The model's entry of ``model.json``, without reliability: weights, and least probabilities of the answers.

    Args:
        table: rows of `cases`.
        side: one of `SIDES`.
    """
    known = _known(table, side)
    model = _weights(known, side)
    # Each cell is judged by a model that hasn't seen it: of the cells it was fitted on any model is too sure.
    parts = []
    for cell, rows in known.groupby("cell"):
        rest = known[known["cell"] != cell]
        if rest["outcome"].nunique() > 1:
            parts.append(_probabilities(Model.of({**_weights(rest, side), "least": {}, "reliability": {}}), rows))
    left_out = pd.concat(parts).loc[known.index]
    least = {answer: _least(left_out[answer].to_numpy(), known, answer) for answer in ANSWERS if answer in left_out}
    return {**model, "least": {answer: p for answer, p in least.items() if p is not None}}


def _known(table: pd.DataFrame, side: str) -> pd.DataFrame:
    """The rows that a model can be fitted on, or judged by."""
    is_known = table["outcome"].isin(OUTCOMES) & ~table["is_dead"] & table[[*FEATURES[side]]].notna().all(axis=1)
    return table[is_known]


def _weights(known: pd.DataFrame, side: str) -> dict[str, Any]:
    logs = {name: np.log10(known[name].clip(*ends).to_numpy(float)) for name, ends in FEATURES[side].items()}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    scales = {name: float(values.std()) or 1.0 for name, values in logs.items()}
    entered = np.stack([(logs[name] - centres[name]) / scales[name] for name in logs], axis=1)
    outcomes = [outcome for outcome in OUTCOMES if (known["outcome"] == outcome).any()]
    target = known["outcome"].map(outcomes.index).to_numpy()
    fitted = LogisticRegression(C=RIDGE, max_iter=10_000, tol=1e-8).fit(entered, target, _cell_weights(known))
    weights, intercepts = fitted.coef_, fitted.intercept_
    if len(outcomes) == 2:  # a single score, that of the second outcome
        weights, intercepts = np.concatenate([-weights / 2, weights / 2]), np.concatenate([-intercepts, intercepts]) / 2
    return {
        "intercepts": {outcome: _round(intercepts[i]) for i, outcome in enumerate(outcomes)},
        "terms": [
            {
                "feature": name, "low": low, "high": high,
                "centre": _round(centres[name]), "scale": _round(scales[name]),
                "weights": {outcome: _round(weights[i, j]) for i, outcome in enumerate(outcomes)},
            }
            for j, (name, (low, high)) in enumerate(FEATURES[side].items())
        ],
    }  # fmt: skip


def _cell_weights(known: pd.DataFrame) -> NDArray[np.float64]:
    """A weight per run: those of a cell add up to three, as many as most cells have."""
    weights: NDArray[np.float64] = (3.0 / known.groupby("cell")["cell"].transform("size")).to_numpy(float)
    return weights


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _probabilities(model: Model, rows: pd.DataFrame) -> pd.DataFrame:
    told = [model.probabilities(row) for row in _records(rows[_numbers(model)])]
    return pd.DataFrame(told, index=rows.index)


def _records(table: pd.DataFrame) -> list[dict[str, float | None]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _numbers(model: Model) -> list[str]:
    return [term.feature for term in model.terms]


def _least(probability: NDArray[np.float64], known: pd.DataFrame, answer: str) -> float | None:
    """The lowest probability from which so few of the answers are wrong; None where there is none."""
    weights, is_right = _cell_weights(known), (known["outcome"] == answer).to_numpy()
    for least in LEAST:
        said = probability >= least
        if said.any() and weights[said & ~is_right].sum() <= MOST_WRONG * weights[said].sum():
            return float(least)
    return None


def judged(table: pd.DataFrame, model: dict[str, Any]) -> pd.DataFrame:
    """The rows of `cases` that are alive, with ``said``, the answer of a model."""
    applied = Model.of({**model, "reliability": {}})
    rows = table[~table["is_dead"]].copy()
    told = [applied.probabilities(row) for row in _records(rows[_numbers(applied)])]
    rows["said"] = [CANT_TELL if p is None else applied.answer(p) or CANT_TELL for p in told]
    return rows


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
    order = [*ANSWERS, CANT_TELL]
    columns = [*OUTCOMES, UNKNOWN]
    return pd.crosstab(rows["said"], rows["outcome"]).reindex(index=order, columns=columns, fill_value=0)


def counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """By answer, how often it was given of cells with a known outcome, and how often it was right."""
    known = rows[rows["outcome"].isin(OUTCOMES)]
    return {
        answer: {"right": int((known["outcome"][known["said"] == answer] == answer).sum()),
                 "said": int((known["said"] == answer).sum())}
        for answer in ANSWERS
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


def model_text() -> str:
    """The text of ``model.json``: fitted on all of the grid, with the counts of the halves."""
    told: dict[str, Any] = {
        side: {**fit(cases(side), side), "reliability": counts(cross_judged(side))} for side in SIDES
    }
    return json.dumps({**told, "dead": dead()}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
