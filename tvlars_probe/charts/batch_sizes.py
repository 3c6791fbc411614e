"""How large the batch may be: the answers on one axis of batch sizes, and the curve of the time to a target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.batches.noise_verdict import interval_text
from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_BARS, MOST_ROWS, inline
from tvlars_probe.charts.limits import Limits
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.analyses.batches.batch_size import BatchSizeAnswers
    from tvlars_probe.analyses.batches.time_to_target import TimeToTarget

COLOURS = {"noise scale": "#0072B2", "time to target": "#D55E00", "branches": "#009E73"}
"""Colours of the answers."""

_HEIGHT = 240
"""Height of a plot, in units of the chart."""


def answers_chart(result: BatchSizeAnswers) -> alt.LayerChart | alt.FacetChart:
    """Each answer's batch size with its 95 % interval; a triangle where it has no upper end, a tick at the own batch.

    Of more than `MOST_BARS` answers the first are drawn.

    Raises:
        NothingToShowError: no answer has a figure above zero.
    """
    table = result.table.head(MOST_BARS)
    places = {name: table[name].where(np.isfinite(table[name].astype(float))) for name in _FIGURES}
    limits = Limits.of([[v for values in places.values() for v in values.astype(float) if v > 0]])
    told = table["low"].notna() & table["high"].notna() | table["value"].notna()
    if limits is None or not told.any():
        raise NothingToShowError("every answer is unknown: tvlars-probe batch-size tells what each of them lacks")
    # A little room, so that an end at the edge is seen to be one.
    ends = [limits.low / 1.5, limits.high * 1.5]
    labels = [_label(row) for row in table.to_dict("records")]
    frame = table.assign(
        label=labels,
        left=table["low"].astype(float).clip(*ends),
        right=table["high"].astype(float).clip(*ends),
        is_open=table["high"] == math.inf,
    )
    x: dict[str, Any] = {
        "title": "batch size (samples)" if {*table["unit"]} <= {"samples"} else "batch size",
        "scale": alt.Scale(type="log", domain=ends, nice=False),
        "axis": _axis(ends),
    }
    names = [name for name in COLOURS if name in {*table["answer"]}]
    base = alt.Chart(inline(frame)).encode(
        y=alt.Y("label:N", sort=labels, title=None, axis=theme.name_axis(labels, 260.0)),
        color=alt.Color(
            "answer:N", title="answer", scale=alt.Scale(domain=names, range=[COLOURS[name] for name in names])
        ),
        tooltip=[
            alt.Tooltip("answer:N"),
            alt.Tooltip("of:N"),
            alt.Tooltip("step:Q", format=","),
            alt.Tooltip("told:N", title="batch"),
            alt.Tooltip("batch:Q", title="own batch", format=",.0f"),
        ],
    )
    layers = [
        base.mark_rule(strokeWidth=3).encode(x=alt.X("left:Q", **x), x2="right:Q"),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=alt.X("value:Q", **x)),
    ]
    if frame["is_open"].any():
        mark = base.transform_filter("datum.is_open").mark_point(shape="triangle-right", filled=True, size=90)
        layers.append(mark.encode(x=alt.value(theme.WIDTH - 5)))
    if table["batch"].notna().any():
        layers.append(
            base.mark_tick(thickness=2, height=18).encode(x=alt.X("batch:Q", **x), color=alt.value("#888888"))
        )
    of = ["bars: 95 %", *(["▶ no upper end"] if frame["is_open"].any() else [])]
    of += ["from the edge: no lower end"] if (table["low"] <= 0).any() else []
    of += ["grey tick: the run's own batch"] if table["batch"].notna().any() else []
    if len(table) < len(result.table):
        of.append(f"the first {len(table)} of {counted(len(result.table), 'answer')}")
    return alt.layer(*layers).properties(
        width=theme.WIDTH,
        height=max(34 * len(table), 70),
        title=theme.title(f"{result.verdict.question} {result.verdict.answer}", "; ".join(of)),
    )


_FIGURES = ("value", "low", "high", "batch")


def _label(row: Mapping[Any, Any]) -> str:
    step = row["step"]
    moment = "" if step is None or step != step else f", step {step:,.0f}"
    return f"{row['answer']}: {row['of']}{moment}"


def _axis(ends: Sequence[float]) -> alt.Axis:
    """An axis of batch sizes, with lines at powers of two: a dozen at most."""
    first, last = math.ceil(math.log2(ends[0])), math.floor(math.log2(ends[1]))
    stride = max(-(-(last - first + 1) // 12), 1)
    return alt.Axis(values=[2.0**k for k in range(first, last + 1, stride)], format=",~g", labelOverlap=True)


def time_chart(result: TimeToTarget) -> alt.LayerChart | alt.FacetChart:
    """Samples to the target by batch size: each run at its batch's best rate, and the fit E = E_min·(1 + B/B_crit).

    Raises:
        NothingToShowError: no run has reached the target.
    """
    rows = result.table[np.isfinite(result.table["samples"].astype(float)) & (result.table["samples"] > 0)]
    if "is_best" in rows:
        rows = rows[rows["is_best"].astype(bool)]
    rows = rows[rows["batch_size"] > 0].head(MOST_ROWS)
    if not len(rows):
        raise NothingToShowError("no run has reached the target: choose an easier one (batch-size --target)")
    if rows["batch_size"].nunique() < 2:
        raise NothingToShowError("these runs are no sweep over batches (tvlars-probe sweep with several --batch-size)")
    b, e = result.b_crit, result.e_min
    batches, samples = rows["batch_size"].astype(float), rows["samples"].astype(float)
    x = alt.X(
        "batch_size:Q", title="batch size (samples)", axis=_axis([batches.min() / 1.2, batches.max() * 1.2]),
        scale=alt.Scale(type="log", nice=False, padding=20),
    )  # fmt: skip
    y: dict[str, Any] = {
        "title": "samples to the target",
        "scale": alt.Scale(type="log", nice=False, padding=12),
        "axis": theme.log_axis(samples),
    }
    shown = [name for name in ("batch_size", "lr", "seed", "run", "steps", "samples") if name in rows]
    tips = [alt.Tooltip("batch_size:Q", title="batch", format=","), alt.Tooltip("samples:Q", format=",.0f")]
    tips += [alt.Tooltip(f"{name}:N") for name in ("lr", "seed", "run") if name in shown]
    colour = alt.value(COLOURS["time to target"])
    points = alt.Chart(inline(rows[shown])).mark_point(filled=True, size=45, opacity=0.8)
    layers = [points.encode(x=x, y=alt.Y("samples:Q", **y), color=colour, tooltip=tips)]
    if math.isfinite(b.value) and math.isfinite(e.value) and b.value > 0:
        at = np.geomspace(batches.min(), batches.max(), 60)
        fit = pd.DataFrame({"batch_size": at, "samples": e.value * (1 + at / b.value)})
        line = alt.Chart(inline(fit)).mark_line(strokeWidth=1.6)
        layers.append(line.encode(x=x, y=alt.Y("samples:Q", **y), color=colour))
        if batches.min() <= b.value <= batches.max():
            rule = alt.Chart(inline(pd.DataFrame([{"batch_size": b.value}]))).mark_rule(strokeDash=[6, 4])
            layers.append(rule.encode(x=x))
    seen = f"Critical batch by time to target: {interval_text(b.value, b.low, b.high, level=result.level)}"
    fewest = interval_text(e.value, e.low, e.high, level=result.level)
    of = f"{counted(len(rows), 'run')} at the best rate of each batch; line: E_min·(1 + B/B_crit), E_min {fewest}"
    return alt.layer(*layers).properties(width=theme.WIDTH, height=_HEIGHT, title=theme.title(seen, of))
