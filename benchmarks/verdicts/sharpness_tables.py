"""The tables of docs/evidence/verdicts.md on what sharpness predicts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.verdicts.sharpness import OPERATORS, OUTCOMES, POOLED

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "benchmarks.verdicts.sharpness"
"""What writes them."""

_PER_OPTIMIZER = ("hessian", "adaptive")
"""The sharpnesses that have a table per optimizer: the classical one, and the one that no change of scale moves."""

_OUTCOMES = {"test_accuracy": "test accuracy", "gap": "gap"}


def text(table: pd.DataFrame) -> str:
    """Both tables, as Markdown: over all optimizers, and for each of them.

    Args:
        table: what `benchmarks.verdicts.sharpness.correlations` makes.
    """
    pooled, own = table[table["optimizer"] == POOLED], table[table["optimizer"] != POOLED]
    lines = _head(["data × model", "settings", "sharpness", *(f"ρ with {_OUTCOMES[name]}" for name in OUTCOMES)])
    for (data, model), of_task in pooled.groupby(["data", "model"]):
        for operator in OPERATORS:
            told = [_cell(of_task, operator, outcome) for outcome in OUTCOMES]
            lines.append(_line([f"{data} × {model}", str(of_task["settings"].max()), operator, *told]))
    kinds = [(operator, outcome) for operator in _PER_OPTIMIZER for outcome in OUTCOMES]
    lines += ["", "For each optimizer:", ""]
    lines += _head(["data × model", "optimizer", "settings", *(f"{one}, {_OUTCOMES[other]}" for one, other in kinds)])
    for (data, model, optimizer), rows in own.groupby(["data", "model", "optimizer"]):
        told = [_cell(rows, operator, outcome) for operator, outcome in kinds]
        lines.append(_line([f"{data} × {model}", str(optimizer), str(rows["settings"].max()), *told]))
    return "\n".join(lines)


def _cell(rows: pd.DataFrame, operator: str, outcome: str) -> str:
    """ρ with its interval, in bold where that excludes zero; of fewer than eight settings without."""
    row = rows[(rows["sharpness"] == operator) & (rows["outcome"] == outcome)].iloc[0]
    rho, low, high = (float(row[name]) for name in ("rho", "low", "high"))
    if not math.isfinite(rho):
        return "–"
    if not math.isfinite(low):
        return f"{rho:.2f}"
    told = f"{rho:.2f} ({low:.2f} to {high:.2f})"
    return f"**{told}**" if low > 0 or high < 0 else told


def _head(names: list[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("-0.", "−0.").replace("-1.", "−1.")
