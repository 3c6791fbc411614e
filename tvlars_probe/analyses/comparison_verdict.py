"""The verdict on settings side by side, and the words of their table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.held_out_choice import expected_best
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import counted, some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "Which setting is best?"

_KEYS = {"optimizer": "", "settings": "", "batch_size": "batch ", "peak_lr": "peak lr "}
"""What stands before a field's value, where it isn't the field's name; the label ``settings`` has its own names."""


def verdict_of(table: pd.DataFrame, metric: str, cells: Sequence[str], held_out: str | None) -> Verdict:
    """Which setting is best: the leader, if it is apart from each of the others.

    Args:
        table: a row per setting, the leader's first, as `Comparison.table` has them.
        metric: what is compared.
        cells: the fields that make a setting.
        held_out: the metric of held-out data that is on record in place of ``metric``.
    """
    best, figures = table.iloc[0], _figures(table, metric)
    name = setting_text(best, cells)
    if table["mean"].isna().all():
        own = f"A loop of your own records it by rec.log_epoch(epoch=..., {metric}=...)."
        instead = own if held_out is None else f"{held_out} is: compare --metric {held_out}."
        if (table["diverged"] == table["runs"]).all():
            instead = "All runs diverged."
        return Verdict(QUESTION, CANT_TELL, f"no {metric} is on record. {instead}", figures)
    if len(table) == 1:
        return Verdict(QUESTION, CANT_TELL, f"all runs have one setting ({name}).", figures)
    second = table.iloc[1]
    if not np.isfinite([best["mean"], second["mean"]]).all():
        return Verdict(QUESTION, CANT_TELL, f"fewer than two settings have a {metric}.", figures)
    others = table.iloc[1:][table.iloc[1:]["mean"].notna()]
    short = [setting_text(row, cells) for _, row in others.iterrows() if row["apart"] is None]
    if short:
        other = setting_text(second, cells)
        leads = f"{name} has the best {metric}, before {other}"
        ties = f"{name} and {other} have the same {metric}"
        which = ties if best["mean"] == second["mean"] else leads
        lacking = "" if not np.isfinite(best["half_width"]) or len(short) == len(others) else f" of {some_of(short)}"
        return Verdict(QUESTION, CANT_TELL, f"{which}, but with one seed there is no interval{lacking}.", figures)
    # The hardest to tell from the leader; of those that are as hard, the best.
    closest = others.iloc[int(others["p_pair"].to_numpy().argmax())]
    numbers = f"{cell_text(best)} against {cell_text(closest)} ({setting_text(closest, cells)}){_difference(closest)}"
    lost = ""
    if best["diverged_there"]:
        lost = f" {counted(int(best['diverged_there']), 'run')} of the leader diverged, and doesn't count in its mean."
    if others["apart"].all():
        apart = "it is apart from the other one" if len(others) == 1 else f"it is apart from the {len(others)} others"
        return Verdict(QUESTION, name, f"{apart}: {numbers}.{lost}", figures)
    near = [setting_text(row, cells) for _, row in others.iterrows() if not row["apart"]]
    reason = f"{name} leads, but isn't apart from {some_of(near)}: {numbers}.{lost}"
    return Verdict(QUESTION, CANT_TELL, reason, figures)


def _difference(row: pd.Series[Any]) -> str:
    if not np.isfinite(row["gap_low"]):
        return ", and no seed differs from another"
    low, high = (_number(row[end]) for end in ("gap_low", "gap_high"))
    return f", a difference of {_number(row['gap'])} ({low} to {high})"


def _figures(table: pd.DataFrame, metric: str) -> tuple[Figure, ...]:
    best, unit = table.iloc[0], "1" if metric.endswith("loss") else "%"
    with_mean = table[table["mean"].notna()]
    errors = with_mean["standard_error"].astype(float).to_numpy()
    alike = expected_best(len(errors)) * float(np.sqrt(np.mean(errors**2))) if len(errors) else np.nan
    return (
        Figure("best", float(best["mean"]), unit, f"mean {metric} of the best cell at its best rate"),
        Figure("half_width", float(best["half_width"]), unit, "half of Student's 95 % interval over seeds"),
        Figure("runs", int(table["runs"].sum()), "1", "runs compared"),
        Figure("diverged", int(table["diverged"].sum()), "1", "runs that diverged"),
        Figure("optimism", float(best["optimism"]), unit, "by how much choosing its rate makes that mean too good"),
        Figure(
            "best_of_alike", alike, unit,
            f"by how much the best of {counted(len(errors), 'setting')} would be too good if all were equally good",
        ),
    )  # fmt: skip


def optimism_text(table: pd.DataFrame) -> str:
    """What the choice of a learning rate among several adds to the means, in a sentence; empty if there was no choice.

    Args:
        table: as `verdict_of` takes it.
    """
    chosen = table[(table["optimism_source"] != "none") & table["mean"].notna()]
    if not len(chosen):
        return ""
    tried = f"Up to {int(chosen['rates'].max())} learning rates were tried for a setting"
    known = chosen[chosen["optimism"].notna()]
    if not len(known):
        return f"{tried}: the best one's mean is too good, and one seed can't tell by how much"
    how = "as choosing on one half of the seeds and measuring on the other shows"
    if (known["optimism_source"] == "scatter").any():
        how = "as the seeds' scatter allows; rates with the same seeds would tell it better"
    most = _number(float(known["optimism"].max()))
    return f"{tried}: the best one's mean is too good by up to {most}, {how}. The intervals reach further by as much"


def setting_text(row: pd.Series[Any], cells: Sequence[str]) -> str:
    """A row's cell in words, such as "LARS, schedule cosine, batch 64"; what isn't known is left out."""
    return ", ".join(
        f"{_KEYS.get(cell, f'{cell} ')}{plain_number(row[cell])}"
        for cell in cells
        if pd.notna(row[cell]) and row[cell] != ""
    )


def plain_number(value: Any) -> Any:
    """A whole number as an integer: a column of integers is one of floats where another run has none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def cell_text(row: pd.Series[Any]) -> str:
    """A row's mean with its interval: "91.00 ± 2.5", or "91.00 (87.9 to 93.5)" where that isn't symmetric."""
    mean, half = row["mean"], row["half_width"]
    if np.isnan(mean):
        return "–"
    text = f"{mean:.2f}" if abs(mean) >= 1 else f"{mean:.3g}"
    if not np.isfinite(half):
        return text
    if row["high"] - row["low"] <= 2 * half * (1 + 1e-9):
        return f"{text} ± {half:.2g}" if half < 100 else f"{text} ± {half:.0f}"
    return f"{text} ({_number(row['low'])} to {_number(row['high'])})"


def _number(value: float) -> str:
    return f"{value:.3g}"
