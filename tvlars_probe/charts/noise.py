"""The noise scale by step beside the run's own batch, and of every tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.batches.noise_verdict import AT, interval_text
from tvlars_probe.analyses.verdict import CANT_TELL
from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, cells, inline, pieces, thinned
from tvlars_probe.charts.limits import Limits
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from tvlars_probe.analyses.batches.noise_scale import NoiseScale
    from tvlars_probe.charts.binning import Cells

COLOURS = {"training": "#0072B2", "probe": "#D55E00"}
"""Colours of estimates by their source."""

_HEIGHT = 260
"""Height of a plot, in units of the chart."""

_LABEL = "noise scale tr Σ/|G|²"


def noise_curve(result: NoiseScale) -> alt.LayerChart | alt.FacetChart:
    """B_simple by step: the moving average in training with its 95 % interval, probes, and the run's own batch.

    An interval without an upper end reaches to the edge. Where B_simple itself can't be told, its lower end alone is
    seen, as the edge of the band.

    Raises:
        NothingToShowError: no estimate has a value or an end above zero.
    """
    curve = result.curve.assign(step=result.curve["step"].astype(float))
    ends = [curve[name].where(np.isfinite(curve[name]) & (curve[name] > 0)).dropna() for name in _FIGURES]
    limits = Limits.of([*ends, [] if result.batch is None else [result.batch]])
    if limits is None or not any(map(len, ends)):
        raise NothingToShowError(
            f"every noise scale of {result.facts.name} is unknown: average more steps (batch-size --window), or "
            f"measure with more samples (batch-size --checkpoint last --samples N)"
        )
    frame = pd.concat(
        thinned([_drawn(rows, limits) for _, rows in curve.groupby("source", sort=False)], "low"), ignore_index=True
    )
    x = theme.step_axis("step:Q", alt.Scale(nice=False, padding=6))  # a point at the edge would be cut in half
    unit = result.unit
    scale = alt.Scale(type="log", domain=[limits.low, limits.high], nice=False)
    y: dict[str, Any] = {
        "title": f"{_LABEL} ({unit})", "scale": scale, "axis": theme.log_axis([limits.low, limits.high]),
    }  # fmt: skip
    names = [name for name in COLOURS if name in {*frame["source"]}]
    colour = alt.Color(
        "source:N", title="estimate", scale=alt.Scale(domain=names, range=[COLOURS[name] for name in names])
    )
    tips = [
        alt.Tooltip("source:N"),
        alt.Tooltip("first_step:Q", title="from step", format=","),
        alt.Tooltip("last_step:Q", title="to step", format=","),
        alt.Tooltip("told:N", title="B_simple"),
        alt.Tooltip("gradient_square:Q", title="mean |G|²", format=".4~g"),
        alt.Tooltip("noise_trace:Q", title="mean tr Σ", format=".4~g"),
    ]
    base = alt.Chart(inline(frame[frame["source"] == "training"])).encode(x=x, color=colour, detail="piece:N")
    band = base.mark_area(opacity=0.2, clip=True).encode(y=alt.Y("bottom:Q", **y), y2="top:Q", tooltip=tips)
    line = base.mark_line(strokeWidth=1.8, clip=True, invalid="break-paths-filter-domains").encode(
        y=alt.Y("simple_batch:Q", **y), tooltip=tips
    )
    probe = alt.Chart(inline(frame[frame["source"] == "probe"])).encode(x=x, color=colour, tooltip=tips)
    bars = probe.mark_rule(strokeWidth=1.4, clip=True).encode(y=alt.Y("bottom:Q", **y), y2="top:Q")
    points = probe.mark_point(filled=True, size=60, opacity=1, clip=True).encode(y=alt.Y("simple_batch:Q", **y))
    # A layer without a row would leave Vega to look for the ends of nothing.
    told = {*frame["source"]}
    layers = [*([band, line] if "training" in told else []), *([bars, points] if "probe" in told else [])]
    if (frame["source"] == "training").sum() == 1:  # an area or a line through one point draws nothing
        one = base.mark_rule(strokeWidth=1.4, clip=True).encode(y=alt.Y("bottom:Q", **y), y2="top:Q", tooltip=tips)
        layers[:2] = [one, base.mark_point(filled=True, size=60).encode(y=alt.Y("simple_batch:Q", **y), tooltip=tips)]
    if result.batch is not None:
        layers += _batch_line(result.batch, unit, y)
    return alt.layer(*layers).properties(width=theme.WIDTH, height=_HEIGHT, title=_title(result, frame))


_FIGURES = ("simple_batch", "low", "high")


def _drawn(rows: pd.DataFrame, limits: Limits) -> pd.DataFrame:
    """The rows of one source with ``bottom`` and ``top``, the ends of what is drawn of their intervals."""
    is_known = rows["low"].notna() & rows["high"].notna()
    told = [interval_text(v, low, high) for v, low, high in zip(*(rows[name] for name in _FIGURES), strict=True)]
    return rows.assign(
        bottom=pd.Series(limits.drawn(rows["low"]), rows.index).where(is_known),
        top=pd.Series(limits.drawn(rows["high"]), rows.index).where(is_known),
        piece=pieces(rows["step"]) + (~is_known).cumsum(),
        told=told,
    )


def _batch_line(batch: float, unit: str, y: dict[str, Any]) -> list[alt.Chart]:
    """The run's own batch as a line with its name."""
    base = alt.Chart(inline(pd.DataFrame([{"batch": batch, "text": f"own batch: {batch:,.0f} {unit}"}])))
    base = base.encode(y=alt.Y("batch:Q", **y))
    rule = base.mark_rule(strokeDash=[6, 4], strokeWidth=1.4)
    words = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11)
    return [rule, words.encode(x=alt.value(theme.WIDTH - 4), text="text:N")]


def _title(result: NoiseScale, frame: pd.DataFrame) -> alt.TitleParams:
    last = result.last
    assert last is not None
    scale = interval_text(*(float(last[name]) for name in _FIGURES))
    seen = f"B_simple at step {last['step']:,}: {scale}"
    if result.batch is not None and result.verdict.answer != CANT_TELL:
        side = "within" if result.verdict.answer == AT else result.verdict.answer
        seen += f"; the batch of {result.batch:,.0f} is {side} it"
    of = [f"{result.facts.name}: {result.facts.method}"]
    if (frame["source"] == "training").any():
        of.append(f"line: means over {counted(result.window, 'recorded step')}, band: 95 %")
    if (frame["source"] == "probe").any():
        of.append("points: probes on a fixed sample, bars: 95 %")
    if frame["is_open"].any():
        of.append("up to the edge: no upper end")
    return theme.title(seen, "; ".join(of))


def noise_map(result: NoiseScale) -> Any:
    """B_simple of every tensor over windows of steps side by side; grey where it can't be told.

    Rows of training are drawn, and those of probes where training has none.

    Raises:
        NothingToShowError: no tensor has a noise scale.
    """
    every = result.layers
    source = "training" if (every["source"] == "training").any() else "probe"
    rows = every[every["source"] == source]
    if not len(rows) or not rows["simple_batch"].notna().any():
        raise NothingToShowError(
            f"no tensor of {result.facts.name} has a noise scale that can be told: average more steps (batch-size "
            f"--window)"
        )
    table = rows.pivot_table(
        index="first_step", columns="parameter", values="simple_batch", aggfunc="last", dropna=False, observed=False
    )
    order = [str(name) for name in result.facts.parameters["name"] if name in table.columns]
    order += [str(name) for name in table.columns if name not in {*order}]
    # What is known to be unknown is marked by an infinite value, which no scale holds: NaN throughout has no row.
    values = table[order].fillna(np.inf).to_numpy(float)
    found = cells(table.index.to_numpy(np.int64), order, values)
    last = rows[rows["first_step"] == rows["first_step"].max()].dropna(subset="simple_batch")
    of: list[str] = []
    if len(last):
        top, low = (last.loc[getattr(last["simple_batch"], which)()] for which in ("idxmax", "idxmin"))
        ends = [f"{interval_text(*(row[name] for name in _FIGURES))} in {row['parameter']}" for row in (low, top)]
        of.append(f"at the end from {ends[0]} to {ends[1]}")
    of.append(f"{result.facts.name}: {result.facts.method}")
    most = int(rows["rows"].max())
    of.append(f"means over {counted(most, 'recorded step')}" if source == "training" else "probes on a fixed sample")
    of += ["grey: |G|² can't be told from zero"] if len(found.unshown) else []
    end = int(rows["last_step"].max()) + 1
    return _map(found, end, result.unit, theme.title("B_simple of every tensor", "; ".join(of)))


def _map(found: Cells, end: int, unit: str, title: alt.TitleParams) -> Any:
    """The cells; those of the last window reach to its ``end``, which the first steps of windows don't tell."""
    shown_cells, unknown_cells = (
        part.assign(end=part["end"].where(part["first"] < last, end))
        for last in [max((part["first"].max() for part in (found.shown, found.unshown) if len(part)), default=0)]
        for part in (found.shown, found.unshown)
    )
    limits = Limits.of([found.shown["value"]])
    domain = alt.Undefined if limits is None else [limits.low, limits.high]
    x = theme.step_axis("first:Q", alt.Scale(nice=False, zero=False))
    axis = theme.name_axis(found.order, groups=found.groups, labelOverlap=True, ticks=False)
    place = {"x": x, "x2": "end:Q", "y": alt.Y("parameter:N", sort=found.order, title=None, axis=axis)}
    tips = [alt.Tooltip("parameter:N", title="layer"), alt.Tooltip("first:Q", title="from step", format=",")]
    legend = alt.Legend(gradientLength=240, format=theme.log_format(found.shown["value"]))
    colour = alt.Color(
        "value:Q", scale=alt.Scale(type="log", scheme=theme.SEQUENTIAL, domain=domain, clamp=True),
        title=f"B_simple ({unit})", legend=legend,
    )  # fmt: skip
    opacity = alt.value(theme.where_picked(1.0, 0.2))
    shown = alt.Chart(inline(shown_cells, MOST_CELLS)).mark_rect(clip=True, strokeWidth=0)
    layers = [shown.encode(**place, color=colour, opacity=opacity,
                           tooltip=[*tips, alt.Tooltip("value:Q", title="B_simple", format=".4~g")])]  # fmt: skip
    if len(unknown_cells):
        unknown = alt.Chart(inline(unknown_cells, MOST_CELLS)).mark_rect(clip=True, color=theme.OTHER_COLOUR)
        layers.append(unknown.encode(**place, opacity=alt.value(theme.where_picked(0.5, 0.1)), tooltip=tips))
    size = {"width": theme.WIDTH, "height": min(max(18 * len(found.order), 60), 640)}
    further = {"usermeta": {"groups": found.groups}} if found.groups else {}
    return alt.layer(*layers).add_params(*theme.picked()).properties(**size, title=title, **further)
