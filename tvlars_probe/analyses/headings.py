"""Headings of the analyses' tables, on the terminal and on a report's page: a column's name to what a reader reads."""

from __future__ import annotations

LAYERS = {
    "parameter": "tensor", "adapted": "adapted", "start_over_settled": "start / settled ratio",
    "redundant_share": "redundant", "hot_steps": "hot steps", "full_rate_step": "full-rate ‖Δw‖/‖w‖",
    "overwritten_steps": "overwritten steps", "length": "needs steps",
}  # fmt: skip
EXPLOSIONS = {
    "parameter": "tensor", "quantity": "explosion of", "first_step": "first step", "peak_step": "peak step",
    "peak_over_median": "peak / later median", "recovery_steps": "steps to recover",
}  # fmt: skip
CORRELATION = {
    "measure": "end sharpness", "outcome": "with", "rho": "Spearman ρ", "low": "95 % from", "high": "to",
    "runs": "runs", "too_few": "too few to say",
}  # fmt: skip


def pairs(side: str) -> dict[str, str]:
    """Of pairs of runs, each side told by its ``method`` or by the ``run``'s name."""
    return {
        "peak_lr": "peak lr", "seed": "seed", f"{side}_without": "without", f"{side}_with": "with",
        "accuracy_without": "test acc (%)", "accuracy_with": "with warm-up (%)", "gain": "gain (points)",
    }  # fmt: skip
