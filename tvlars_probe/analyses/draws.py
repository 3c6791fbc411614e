"""Figures measured on several disjoint samples of one size, as ``sharpness --draws K`` does: mean and spread.

The mean over K draws of n samples estimates the figure's mean over samples *of that size*, and isn't the figure of all
the data. λ₁ is a convex function of the Hessian: that of a mean of Hessians is at most the mean of their λ₁ (Jensen).
Where the loss is a mean over samples, the mean sharpness over samples of n is thus at least that of all the data, and
doesn't rise with n. A trace is linear: its mean is that of all the data at every n.

The mean's standard error is s/√K, with the standard deviation s of a single draw, and its interval is Student's with
K − 1 degrees of freedom. Each draw has random vectors of its own: so s holds the error of a trace's estimator already,
which must not be added again. Draws from data without end are independent. Disjoint draws from N given samples aren't
quite: where one has more of the steep samples the others have fewer. As an interval for the mean over all samples of n
out of these N it is too wide, by 1/√(1 − K·n/N) for a figure that is a mean over samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.intervals import Mean

COLUMNS = ("measurement_id", "created_at", "sample_id", "draw", "engine", "epsilon", "dimensions")
"""Columns of ``curvature`` by which `over_draws` knows one figure's draws; those that aren't there count as null."""

SPECTRUM_COLUMNS = ("measurement_id", "created_at", "draw", "samples")
"""Columns of ``spectrum`` by which `densities_over_draws` knows one density's draws."""

ADDED = ("draws", "standard_error", "deviation", "low", "high", "not_converged", "sample")
"""Columns that `over_draws` adds."""

_FIGURE = (
    "measurement_id", "step", "phase", "measure", "operator", "scope", "scope_kind", "rank", "epsilon", "dimensions",
    "split", "bn_mode", "engine", "samples", "precision",
)  # fmt: skip
"""What the draws of one figure have in common."""

_TOTALS = ("matvecs", "seconds")


def over_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Put the mean over its draws in place of each figure that has several; other figures stay as they are.

    Args:
        rows: of the table ``curvature``; categories become plain strings.

    Returns:
        a row per figure, in order of time. ``value`` is the mean, ``error`` the largest of the draws' own errors
        (residual, or standard error of a trace), ``converged`` whether all have; products and seconds are added up. The
        columns `ADDED`: ``draws``, the number of them that are finite (1 without draws); ``standard_error`` of the
        mean; ``deviation``, the standard deviation of a single draw; ``low`` and ``high``, the ends of the mean's 95 %
        interval; ``not_converged``, the number of draws; ``sample``, which names the samples. Without draws there is no
        error of a mean, and a figure keeps the interval that it has of its own.
    """
    rows = _in_order_of_time(rows, COLUMNS)
    # Null where it isn't told, and an older row doesn't tell it: such rows aren't "not converged".
    not_converged = (rows["converged"] == False).astype(int)  # noqa: E712
    nothing = {name: np.nan for name in ("standard_error", "deviation", "low", "high") if name not in rows}
    sample = rows["sample_id"].astype(object).fillna("")
    rows = rows.assign(draws=1, **nothing, not_converged=not_converged, sample=sample)
    drawn = rows[rows["draw"].notna()]
    if drawn.empty:
        return rows.reset_index(drop=True)
    keys = [name for name in _FIGURE if name in rows]
    means = pd.DataFrame([_mean_row(group) for _, group in drawn.groupby(keys, sort=False, dropna=False)])
    # As plain objects: the types of a column differ between the two where it is null in one of them.
    joined = pd.concat([rows[rows["draw"].isna()].astype(object), means.astype(object)]).sort_index(kind="stable")
    return joined.infer_objects().astype({"draws": int, "not_converged": int}).reset_index(drop=True)


def densities_over_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """One spectral density per step, operator, block, BatchNorm mode and part of the data: the latest measurement's.

    A density that was measured on several draws becomes their mean, on a grid over all of them; its ``error`` is the
    standard error of that mean, from the spread over draws. The column ``draws`` is their number.

    Args:
        rows: of the table ``spectrum``; categories become plain strings.
    """
    rows = _in_order_of_time(rows, SPECTRUM_COLUMNS)
    found = [_density(group) for _, group in rows.groupby(_DENSITY, sort=False, dropna=False)]
    return pd.concat(found, ignore_index=True) if found else rows.assign(draws=pd.Series(dtype=int))


def sample_text(samples: float | None, draws: int, which: str = "this") -> str:
    """The words for what a figure was measured on: "on this sample of 128", "mean of 10 samples of 128".

    Args:
        samples: size of the sample, or of each; null if unknown.
        draws: number of draws, 1 without any.
        which: "this", or "a" of several runs.
    """
    size = "unknown size" if pd.isna(samples) else f"{samples:,.0f}"
    return f"mean of {draws} samples of {size}" if draws > 1 else f"on {which} sample of {size}"


_DENSITY = ["step", "operator", "scope", "bn_mode", "split"]


def _in_order_of_time(rows: pd.DataFrame, needed: tuple[str, ...]) -> pd.DataFrame:
    """The rows with the columns needed and without categories, numbered from the earliest to the latest."""
    missing = {name: None for name in needed if name not in rows}
    categories = rows.select_dtypes("category").columns
    # groupby would make an empty group of a category without rows.
    plain = rows.astype(dict.fromkeys(categories, object)).assign(**missing)
    # The parts of a table are in order of their first steps: a later measurement may stand in an earlier part.
    return plain.sort_values("created_at", kind="stable", na_position="first", ignore_index=True)


def _mean_row(group: pd.DataFrame) -> pd.Series[Any]:
    """The row of a figure's draws, in the place of the first one."""
    row = group.iloc[0].astype(object)
    mean = Mean.of(group["value"].tolist())
    told = group["converged"].dropna()
    row["value"], row["error"] = mean.value, group["error"].max()
    row["converged"] = bool(told.all()) if len(told) else None
    row["draws"], row["not_converged"] = mean.count, int(group["not_converged"].sum())
    row["standard_error"], row["deviation"] = mean.standard_error, mean.deviation
    row["low"], row["high"] = mean.value - mean.half_width, mean.value + mean.half_width
    row["sample"] = " ".join(sorted(map(str, group["sample_id"])))
    for name in _TOTALS:
        if name in group:
            row[name] = group[name].sum()
    if "loss" in group:
        row["loss"] = group["loss"].mean()
    if "check" in group:
        row["check"] = ", ".join(dict.fromkeys(group["check"].dropna().astype(str))) or None
    return row


def _density(group: pd.DataFrame) -> pd.DataFrame:
    """The density of the group's latest measurement, over its draws."""
    names = group["measurement_id"].astype(object).fillna("")
    last: pd.DataFrame = group[names == names.iloc[-1]]
    curves = [curve.sort_values("grid") for _, curve in last.groupby("draw", dropna=False)]
    if len(curves) == 1:
        return last.sort_values("grid").assign(draws=1)
    grid = np.linspace(last["grid"].min(), last["grid"].max(), max(map(len, curves)))
    # Beyond its own grid a density is zero.
    at_grid = np.array([np.interp(grid, c["grid"], c["density"], left=0, right=0) for c in curves])
    error = at_grid.std(axis=0, ddof=1) / np.sqrt(len(curves))
    common = {name: last[name].iloc[0] for name in last.columns}
    return pd.DataFrame(common | {"grid": grid, "density": at_grid.mean(axis=0), "error": error, "draws": len(curves)})
