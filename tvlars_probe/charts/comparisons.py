"""Settings side by side, and sharpness against the generalisation gap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, inline

if TYPE_CHECKING:
    from tvlars_probe.analyses.comparison import Comparison
    from tvlars_probe.analyses.correlation import SharpnessCorrelation
    from tvlars_probe.analyses.warmup_pairs import WarmupPairs

MEASURES = {"hessian": "sharpness λ₁", "relative": "relative sharpness", "effective": "effective sharpness"}
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


def comparison_chart(result: Comparison) -> alt.LayerChart:
    """Each setting at its best learning rate: the mean of the metric over seeds and its 95 % interval."""
    table = result.table.head(MOST_ROWS).copy()
    cells = [*result.rows, *result.columns]
    table["setting"] = [", ".join(_field(n, row[n]) for n in cells if pd.notna(row[n])) for _, row in table.iterrows()]
    table = _with_interval(table, result.metric)
    table["optimizer"] = table["optimizer"].fillna("other") if "optimizer" in table else "other"
    columns = ["setting", "optimizer", "mean", "low", "high", "half_width", "rate", "seeds", "diverged"]
    is_loss = result.metric.endswith("loss")
    top = table.iloc[0]  # the table stands in order, the best setting first
    seen = f"Highest mean: {top['setting']}" if not is_loss else f"Lowest mean: {top['setting']}"
    # A rate that is chosen on the metric itself makes its mean look better than it is: the reader must know.
    how = (
        "chosen on the metric itself"
        if result.chosen_on == result.metric
        else f"chosen on {_named(result.chosen_on).removesuffix(' (%)')}"
    )
    of = f"{theme.counted(len(result.runs))}; mean and 95 % interval over seeds, best learning rate of each ({how})"
    without = int(table["mean"].isna().sum())
    of += f"; {theme.counted(without, 'setting')} without a value" if without else ""
    base = alt.Chart(inline(table[columns])).encode(
        y=alt.Y("setting:N", sort=table["setting"].tolist(), title=None, axis=alt.Axis(labelLimit=420)),
        color=alt.Color("optimizer:N", scale=theme.optimizer_scale(table["optimizer"]), title="optimizer"),
        tooltip=[
            "setting:N",
            alt.Tooltip("mean:Q", format=".4~g"),
            alt.Tooltip("half_width:Q", title="± 95 %", format=".2~g"),
            alt.Tooltip("rate:Q", title="peak learning rate", format="~g"),
            "seeds:Q",
            "diverged:Q",
        ],
    )
    x: dict[str, Any] = {
        "title": _named(result.metric),
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8),
    }
    return (
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **x), x2="high:Q")
        + base.mark_point(filled=True, size=70).encode(x=alt.X("mean:Q", **x))
    ).properties(width=theme.WIDTH, height=max(34 * len(table), 70), title=theme.title(seen, of))


def rate_sensitivity(result: Comparison) -> alt.LayerChart:
    """The metric against the peak learning rate: a line per setting, with a 95 % interval at each rate."""
    rates = result.rates.dropna(subset=["rate", "mean"]).copy()
    cells = [*result.rows, *result.columns]
    rates["setting"] = [", ".join(_field(n, row[n]) for n in cells if pd.notna(row[n])) for _, row in rates.iterrows()]
    rates = _with_interval(rates, result.metric)
    rates["optimizer"] = rates["optimizer"].fillna("other") if "optimizer" in rates else "other"
    named = _named(result.metric)
    seen = f"{named[:1].upper()}{named[1:].removesuffix(' (%)')} against the peak learning rate"
    columns = ["setting", "optimizer", "rate", "mean", "low", "high", "seeds", "diverged"]
    kinds = list(dict.fromkeys(rates["setting"]))
    of = f"{theme.counted(len(result.runs))}; mean and 95 % interval over seeds"
    base = alt.Chart(inline(rates[columns].head(MOST_ROWS))).encode(
        x=alt.X(
            "rate:Q",
            scale=alt.Scale(type="log", nice=False, padding=20),
            title="peak learning rate",
            axis=theme.log_axis(rates["rate"]),
        ),
        color=alt.Color("optimizer:N", scale=theme.optimizer_scale(rates["optimizer"]), title="optimizer"),
        detail="setting:N",
        tooltip=[
            "setting:N",
            alt.Tooltip("rate:Q", format="~g"),
            alt.Tooltip("mean:Q", format=".4~g"),
            "seeds:Q",
            "diverged:Q",
        ],
    )
    y: dict[str, Any] = {
        "title": _named(result.metric),
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8),
    }
    shapes = alt.Shape("setting:N", scale=alt.Scale(domain=kinds), title="setting", legend=alt.Legend(columns=1))
    return (
        base.mark_line(strokeWidth=1.4).encode(y=alt.Y("mean:Q", **y))
        + base.mark_rule().encode(y=alt.Y("low:Q", **y), y2="high:Q")
        + base.mark_point(size=60, filled=True).encode(y=alt.Y("mean:Q", **y), shape=shapes)
    ).properties(width=theme.WIDTH, height=260, title=theme.title(seen, of))


def gap_chart(result: SharpnessCorrelation) -> alt.Chart:
    """Each run's end sharpness against its generalisation gap; runs that lack either are left out."""
    measures = [name for name in MEASURES if f"end_{name}" in result.runs]
    chosen = measures[0] if measures else "hessian"
    runs = result.runs.reindex(columns=["run", "optimizer", f"end_{chosen}", "generalisation_gap", "test_error"])
    runs = runs.rename(columns={f"end_{chosen}": "sharpness"}).dropna(subset=["sharpness", "generalisation_gap"])
    runs["optimizer"] = runs["optimizer"].fillna("other")
    return (
        alt.Chart(
            inline(runs.head(MOST_ROWS)),
            title=theme.title(f"Sharper and worse? {result.verdict.answer}", result.verdict.reason),
        )
        .mark_point(filled=True, size=80)
        .encode(
            x=alt.X(
                "sharpness:Q",
                scale=alt.Scale(type="log"),
                title=f"{MEASURES[chosen]} at the end",
                axis=theme.log_axis(runs["sharpness"]),
            ),
            y=alt.Y("generalisation_gap:Q", title=OUTCOMES["generalisation_gap"], scale=alt.Scale(zero=False)),
            color=alt.Color("optimizer:N", scale=theme.optimizer_scale(runs["optimizer"]), title="optimizer"),
            tooltip=[
                "run:N",
                alt.Tooltip("sharpness:Q", format=".4~g"),
                alt.Tooltip("generalisation_gap:Q", format=".3~g"),
                alt.Tooltip("test_error:Q", format=".3~g"),
            ],
        )
        .properties(width=theme.WIDTH, height=260)
    )


def _with_interval(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows with ``low`` and ``high``, the ends of each interval; both are the mean where there is no interval."""
    # An interval over few seeds may reach beyond 100 % or below zero, where the metric can't be.
    least, most = (0.0, None) if metric.endswith("loss") else (0.0, 100.0)
    low, high = rows["mean"] - rows["half_width"], rows["mean"] + rows["half_width"]
    return rows.assign(low=low.fillna(rows["mean"]).clip(least, most), high=high.fillna(rows["mean"]).clip(least, most))


def _named(metric: str) -> str:
    """A metric's label."""
    return METRICS.get(metric, metric.replace("_", " "))


def _field(name: str, value: object) -> str:
    """A field of a setting, as the setting's label has it."""
    if name == "batch_size":
        return f"batch {value}"
    if name == "lmbda":
        return f"λ {value:g}"
    if name == "schedule" and value == "none":
        return "no schedule"
    return str(value)


def warmup_pairs_chart(result: WarmupPairs) -> alt.LayerChart:
    """Test accuracy without and with warm-up, a line per pair of runs."""
    pairs = result.pairs.copy()
    pairs["pair"] = [
        f"peak {row.peak_lr:g}, seed {row.seed}: {row.run_without}, {row.run_with}" for row in pairs.itertuples()
    ]
    pairs["optimizer"] = pairs["optimizer"].fillna("other")
    columns = ["pair", "optimizer", "accuracy_without", "accuracy_with", "gain", "run_without", "run_with"]
    seen = theme.title(f"Warm-up: {result.verdict.answer}", result.verdict.reason)
    base = alt.Chart(inline(pairs[columns].head(MOST_ROWS))).encode(
        y=alt.Y("pair:N", title=None, sort=pairs["pair"].tolist(), axis=alt.Axis(labelLimit=420)),
        color=alt.Color("optimizer:N", scale=theme.optimizer_scale(pairs["optimizer"]), title="optimizer"),
        tooltip=[
            "run_without:N",
            "run_with:N",
            alt.Tooltip("accuracy_without:Q", format=".2f"),
            alt.Tooltip("accuracy_with:Q", format=".2f"),
            alt.Tooltip("gain:Q", format="+.2f"),
        ],
    )
    x: dict[str, Any] = {
        "title": "test accuracy (%): hollow without, filled with warm-up",
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8),
    }
    return (
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("accuracy_without:Q", **x), x2="accuracy_with:Q")
        + base.mark_point(size=70).encode(x=alt.X("accuracy_without:Q", **x))
        + base.mark_point(size=70, filled=True).encode(x=alt.X("accuracy_with:Q", **x))
    ).properties(width=theme.WIDTH, height=max(28 * len(pairs), 70), title=seen)
