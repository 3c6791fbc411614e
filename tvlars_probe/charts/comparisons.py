"""Settings side by side, and sharpness against the generalisation gap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_BARS, MOST_ROWS, inline
from tvlars_probe.charts.limits import Limits
from tvlars_probe.charts.runs_apart import DASHES
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from tvlars_probe.analyses.comparison import Comparison
    from tvlars_probe.analyses.correlation import SharpnessCorrelation

MEASURES = {
    "hessian": "sharpness λ₁",
    "relative": "relative sharpness",
    "effective": "effective sharpness",
    "ggn": "sharpness of the Gauss-Newton matrix",
    "adaptive": "adaptive sharpness",
}
"""Labels of sharpness by operator. `gap_chart` draws the first that is on record."""

METRICS = {
    "test_acc1": "test accuracy (%)", "test_acc5": "test accuracy, top 5 (%)", "test_loss": "test loss",
    "val_acc1": "held-out accuracy (%)", "val_acc5": "held-out accuracy, top 5 (%)", "val_loss": "held-out loss",
    "train_acc1": "training accuracy (%)", "train_loss": "training loss",
    "train_eval_acc1": "accuracy on un-augmented training data (%)",
    "train_eval_loss": "loss on un-augmented training data",
}  # fmt: skip
"""Labels of the metrics, by column of the table ``epochs``."""

OUTCOMES = {"generalisation_gap": "generalisation gap (points)", "test_error": "test error (%)"}
"""Labels of how a run generalises."""

SETTING_ROOM = 420.0
"""Width of a setting's name."""

_HEIGHT = 260
"""Height of a plot, in units of the chart."""


def comparison_chart(result: Comparison) -> alt.LayerChart | alt.FacetChart:
    """Each setting at its best learning rate: the mean of the metric over seeds and its 95 % interval.

    Of more than `MOST_BARS` settings the best are drawn.

    Raises:
        NothingToShowError: no setting has the metric.
    """
    every = result.table[np.isfinite(result.table["mean"].astype(float))]
    if not len(every):
        raise NothingToShowError(f"no run has a {_plainly(result.metric)} on record: it comes with a finished epoch")
    table = _with_interval(_with_setting(every.head(MOST_BARS), result), result.metric)
    columns = ["setting", "optimizer", "mean", "low", "high", "rate", "rates", "seeds", "diverged", "gone"]
    # Those of which every run diverged have no place on the scale, as long as there are others.
    gone = _gone(table)
    table = table.assign(gone=gone & (not gone.all()))
    # The table stands in order, the best setting first. One setting by itself is no comparison.
    best = "Lowest mean" if result.metric.endswith("loss") else "Highest mean"
    seen = f"{best if len(every) > 1 else 'Mean'}: {table.iloc[0]['setting']}"
    # A rate that is chosen on the metric itself makes its mean look better than it is: the reader must know.
    how = (
        "chosen on the metric itself"
        if result.chosen_on == result.metric
        else f"chosen on {_plainly(result.chosen_on)}"
    )
    of = [_runs(result), f"mean and 95 % interval over seeds, best learning rate of each ({how})"]
    if (table["optimism"] > 0).any():
        of.append("bars reach further by what that choice makes a mean too good")
    if len(every) > len(table):
        of.append(f"the best {len(table)} of {counted(len(every), 'setting')}")
    without = len(result.table) - len(every)
    of += [f"{counted(without, 'setting')} without a value"] if without else []
    names = table["setting"].tolist()
    base = alt.Chart(inline(table[columns])).encode(
        y=alt.Y("setting:N", sort=names, title=None, axis=theme.name_axis(names, SETTING_ROOM)),
        color=alt.Color("optimizer:N", scale=theme.optimizer_scale(table["optimizer"]), title="optimizer"),
        tooltip=[
            "setting:N",
            alt.Tooltip("mean:Q", format=".4~g"),
            alt.Tooltip("low:Q", title="95 % from", format=".4~g"),
            alt.Tooltip("high:Q", title="to", format=".4~g"),
            alt.Tooltip("rate:Q", title="peak learning rate", format="~g"),
            alt.Tooltip("rates:Q", title="rates tried"),
            "seeds:Q",
            "diverged:Q",
        ],
    )
    x: dict[str, Any] = {
        "title": _named(result.metric),
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8, format=".4~g"),
    }
    there, shape = base.transform_filter("!datum.gone"), theme.optimizer_shape(table["optimizer"])
    layers = [
        there.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **x), x2="high:Q"),
        there.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("mean:Q", **x), shape=shape),
    ]
    if table["gone"].any():
        cross = base.transform_filter("datum.gone").mark_point(shape="cross", angle=45, filled=True, size=90, opacity=1)
        layers.append(cross.encode(x=alt.value(5)))
        of.append("✕ every run diverged")
    return alt.layer(*layers).properties(
        width=theme.WIDTH, height=max(34 * len(table), 70), title=theme.title(seen, "; ".join(of))
    )


def rate_sensitivity(result: Comparison) -> alt.LayerChart | alt.FacetChart:
    """The metric against the peak learning rate: a line per setting, with a 95 % interval at each rate.

    Crosses at the lower edge mark the rates at which a run diverged.

    Raises:
        NothingToShowError: no run has both the metric and a learning rate above zero.
    """
    rates = result.rates[result.rates["rate"].astype(float) > 0]
    rates = _with_interval(_with_setting(rates.head(MOST_ROWS), result), result.metric)
    named = _plainly(result.metric)
    gone = _gone(rates)
    told = rates[np.isfinite(rates["mean"].astype(float)) & ~(gone & (not gone.all()))]
    bad = rates[rates["diverged"] > 0]
    if not len(told):
        raise NothingToShowError(f"no run has a {named} and a peak learning rate above zero on record")
    seen = f"{named[:1].upper()}{named[1:]} against the peak learning rate"
    columns = ["setting", "optimizer", "rate", "mean", "low", "high", "seeds", "diverged"]
    of = [_runs(result), "mean and 95 % interval over seeds", *(["✕ diverged"] if len(bad) else [])]
    x = alt.X(
        "rate:Q",
        scale=alt.Scale(type="log", nice=False, padding=20),
        title="peak learning rate",
        axis=theme.log_axis(rates["rate"]),
    )
    of_kind = dict(zip(rates["setting"], rates["optimizer"], strict=True))
    # As elsewhere an optimizer's plain line is that without a schedule.
    kinds = sorted(of_kind, key=lambda kind: (of_kind[kind], "no schedule" not in kind))
    legend = theme.name_legend(kinds, SETTING_ROOM, columns=1, symbolSize=100, symbolStrokeWidth=0)
    colours = [theme.OPTIMIZER_COLOURS.get(of_kind[kind], theme.OTHER_COLOUR) for kind in kinds]
    dashes = [DASHES[place % len(DASHES)] for place in range(len(kinds))]
    look: dict[str, Any] = {"title": "setting", "legend": legend}
    colour = alt.Color("setting:N", scale=alt.Scale(domain=kinds, range=colours), **look)
    shape = alt.Shape("setting:N", scale=alt.Scale(domain=kinds, range=theme.shapes(len(kinds))), **look)
    dash = alt.StrokeDash("setting:N", scale=alt.Scale(domain=kinds, range=dashes), **look)
    tips: list[Any] = [
        "setting:N",
        alt.Tooltip("rate:Q", format="~g"),
        alt.Tooltip("mean:Q", format=".4~g"),
        "seeds:Q",
        "diverged:Q",
    ]
    base = alt.Chart(inline(told[columns])).encode(x=x, color=colour, detail="setting:N", tooltip=tips)
    y: dict[str, Any] = {
        "title": _named(result.metric),
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8, format=".4~g"),
    }
    layers = [
        base.mark_line(strokeWidth=1.4).encode(y=alt.Y("mean:Q", **y), strokeDash=dash),
        base.mark_rule().encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        base.mark_point(size=60, filled=True, opacity=1).encode(y=alt.Y("mean:Q", **y), shape=shape),
    ]
    if len(bad):
        crosses = alt.Chart(inline(bad[columns])).mark_point(shape="cross", angle=45, filled=True, size=70, opacity=1)
        layers.append(crosses.encode(x=x, y=alt.value(_HEIGHT), color=colour, tooltip=tips))
    return alt.layer(*layers).properties(width=theme.WIDTH, height=_HEIGHT, title=theme.title(seen, "; ".join(of)))


def gap_chart(result: SharpnessCorrelation) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    """Each run's end sharpness against its generalisation gap; runs that lack either are left out.

    Raises:
        NothingToShowError: fewer than two runs have both.
    """
    measures = [name for name in MEASURES if f"end_{name}" in result.runs]
    chosen = measures[0] if measures else "hessian"
    runs = result.runs.reindex(columns=["run", "optimizer", f"end_{chosen}", "generalisation_gap", "test_error"])
    runs = runs.rename(columns={f"end_{chosen}": "sharpness"})
    # A sharpness of zero or below has no place on a logarithmic axis.
    there = np.isfinite(runs["generalisation_gap"]) & np.isfinite(runs["sharpness"]) & (runs["sharpness"] > 0)
    without, runs = int((~there).sum()), runs[there]
    if len(runs) < 2:
        raise NothingToShowError(
            f"{counted(len(runs), 'run')} with a {MEASURES[chosen]} above zero and a generalisation gap: it takes two "
            f"(train --sharpness-every, with --train-eval-samples above 0)"
        )
    runs = runs.assign(optimizer=runs["optimizer"].fillna("other")).head(MOST_ROWS)
    of = result.verdict.reason + (
        f" Not drawn: {counted(without, 'run')}, without a gap or a sharpness above zero." if without else ""
    )
    limits = Limits.of([runs["sharpness"]])
    assert limits is not None  # every sharpness is above zero
    within = runs[limits.within(runs["sharpness"])]
    sides = (
        (runs[runs["sharpness"] < limits.low], "triangle-left", 5),
        (runs[runs["sharpness"] > limits.high], "triangle-right", theme.WIDTH - 5),
    )
    of += " ◀▶ beyond the axis." if len(within) < len(runs) else ""
    y = alt.Y("generalisation_gap:Q", title=OUTCOMES["generalisation_gap"], scale=alt.Scale(zero=False))
    colour = alt.Color("optimizer:N", scale=theme.optimizer_scale(runs["optimizer"]), title="optimizer")
    tips: list[Any] = [
        "run:N",
        alt.Tooltip("sharpness:Q", format=".4~g"),
        alt.Tooltip("generalisation_gap:Q", format=".3~g"),
        alt.Tooltip("test_error:Q", format=".3~g"),
    ]
    x = alt.X(
        "sharpness:Q",
        scale=alt.Scale(type="log"),
        title=f"{MEASURES[chosen]} at the end",
        axis=theme.log_axis(within["sharpness"]),
    )
    shape = theme.optimizer_shape(runs["optimizer"])
    dots = alt.Chart(inline(within)).mark_point(filled=True, size=80)
    points = dots.encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    marks = [
        alt.Chart(inline(rows))
        .mark_point(shape=shape, filled=True, size=80, opacity=1)
        .encode(x=alt.value(place), y=y, color=colour, tooltip=tips)
        for rows, shape, place in sides
        if len(rows)
    ]
    chart = alt.layer(points, *marks) if marks else points
    heading = theme.title(f"Sharper and worse? {result.verdict.answer}", of)
    return chart.properties(width=theme.WIDTH, height=_HEIGHT, title=heading)


def _with_interval(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows with ``low`` and ``high``, the ends of each interval; both are the mean where there is no interval."""
    # An interval over few seeds may reach beyond 100 % or below zero, where the metric can't be.
    least, most = (0.0, None) if metric.endswith("loss") else (0.0, 100.0)
    # Those of a setting are on record, those of a single rate aren't.
    low, high = (
        rows[end] if end in rows else rows["mean"] + side * rows["half_width"]
        for end, side in (("low", -1), ("high", 1))
    )
    return rows.assign(low=low.fillna(rows["mean"]).clip(least, most), high=high.fillna(rows["mean"]).clip(least, most))


def _with_setting(rows: pd.DataFrame, result: Comparison) -> pd.DataFrame:
    """The rows with ``setting``, the label of their cell, and an ``optimizer`` for its colour."""
    cells = [*result.rows, *result.columns]
    labels = [
        ", ".join(_field(name, row[name]) for name in cells if pd.notna(row[name]) and row[name] != "")
        for _, row in rows.iterrows()
    ]
    optimizer = rows["optimizer"].fillna("other") if "optimizer" in rows else "other"
    return rows.assign(setting=labels, optimizer=optimizer)


def _gone(rows: pd.DataFrame) -> pd.Series[Any]:
    """Whether runs diverged and none was completed: what they had reached until then says nothing."""
    return (rows["diverged"] > 0) & (rows["diverged"] + rows["unfinished"] == rows["runs"])


def _runs(result: Comparison) -> str:
    """How many runs are compared, and how many of them diverged."""
    diverged = int(result.table["diverged"].sum())
    return counted(len(result.runs), "run") + (f", of which {diverged:,} diverged" if diverged else "")


def _plainly(metric: str) -> str:
    """A metric's label without its unit."""
    return _named(metric).removesuffix(" (%)")


def _named(metric: str) -> str:
    """A metric's label."""
    return METRICS.get(metric, metric.replace("_", " "))


def _field(name: str, value: object) -> str:
    """A field of a setting, as the setting's label has it."""
    if name == "batch_size":
        return f"batch {value}"
    if name == "lmbda":
        return f"λ {value:.12g}"
    if name == "schedule" and value == "none":
        return "no schedule"
    return str(value)
