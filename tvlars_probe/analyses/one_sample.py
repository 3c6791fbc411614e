"""One sample a curve: which of the samples that a run was measured on makes the curve of its sharpness.

Sharpness differs from sample to sample, and falls as samples grow: figures of unlike samples on one curve would look
like a change in training. So an operator's curve holds the figures of one sample, or the means over the same draws, by
one engine: of those with the most measured steps. Of equals it is that of more draws, then our own engine's before
PyHessian's, then the one measured last. Where a step was measured more than once on it, the latest figure is taken.
"""

from __future__ import annotations

import pandas as pd

SERIES = ("operator", "bn_mode", "split", "engine", "samples", "draws", "sample")
"""What the figures of one curve have in common."""

COLUMNS = (
    "operator", "bn_mode", "split", "engine", "samples", "draws", "is_curve", "steps", "repeated", "last_step", "value",
    "standard_error", "deviation", "low", "high", "not_converged",
)  # fmt: skip
"""Columns of the table of samples that `curves_of_one_sample` makes."""


def curves_of_one_sample(top: pd.DataFrame, mode: tuple[str | None, str | None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose each operator's sample, and its figure at each step.

    Args:
        top: figures of one measure of the whole model, as `tvlars_probe.analyses.draws.over_draws` gives them.
        mode: BatchNorm mode and part of the data of the curves.

    Returns:
        the rows of the curves, one per operator and step, in this order; and a row per operator and sample on record:
        the columns `COLUMNS`, among them ``is_curve``, ``steps`` (number of steps measured on it), ``repeated`` (of
        these, measured more than once), and the latest figure at the ``last_step``.
    """
    if top.empty:
        return top, pd.DataFrame(columns=list(COLUMNS)).astype({"is_curve": bool})
    top = top.assign(series=top.groupby(list(SERIES), sort=False, dropna=False).ngroup(), time=range(len(top)))
    times = top.groupby(["series", "step"])["value"].transform("size")
    rows = top.assign(again=times > 1).drop_duplicates(["series", "step"], keep="last").sort_values(["series", "step"])
    series = rows.groupby("series").agg(steps=("step", "size"), repeated=("again", "sum"), time=("time", "max"))
    found = rows.groupby("series").tail(1).set_index("series").drop(columns="time").join(series)
    found["last_step"], found["is_peer"] = found["step"], found["engine"] == "pyhessian"
    own = found[(found["bn_mode"] == mode[0]) & (found["split"] == mode[1])]
    best = own.sort_values(["steps", "draws", "is_peer", "time"], ascending=[False, False, True, False])
    chosen = best.drop_duplicates("operator").index
    found["is_curve"] = found.index.isin(chosen)
    curves = rows[rows["series"].isin(chosen)].sort_values(["operator", "step"], ignore_index=True)
    return curves, found.sort_values("time")[list(COLUMNS)].reset_index(drop=True)
