"""Sharpness by step beside its limit, and spectral densities.

A chart holds one BatchNorm mode and one part of the data: in another mode the loss is another function, with another
Hessian.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.charts import densities, theme
from tvlars_probe.charts.binning import inline, thinned
from tvlars_probe.charts.limits import edge_words, within_axes
from tvlars_probe.charts.runs_apart import labels, run_dash
from tvlars_probe.charts.setting_sharpness import sharpness_of_settings
from tvlars_probe.charts.sharpness_words import (
    OF,
    OPERATORS,
    left_out_of,
    measured_on,
    same_mode,
    sharpness_subtitle,
)
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.minimizer import Minimizer

EIGENVALUES = {name: f"eigenvalue λ of {what}" for name, what in OF.items()}
"""Label of a spectral density's axis, or of its panel, by operator."""

_PANEL = 150
"""Height of a panel."""

_CROSS = "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z"
"""Path of the mark where a run diverged."""

_POWERS = range(-6, 13)
"""Powers of ten among the lines of the panels' axes. All panels have one axis but a range each."""

_MOST_DECADES = 3
"""Most decades of a panel with lines at 1-2-5."""

MOST_RUNS = 5
"""Most runs with a line each in a panel per operator. Of more runs one operator is drawn, a line per setting."""


def sharpness_curves(results: Sequence[Minimizer]) -> alt.FacetChart | alt.ConcatChart | alt.LayerChart:
    """Sharpness by step, each operator's in a panel of its own; means over draws with their 95 % intervals.

    Of more than `MOST_RUNS` runs the adaptive sharpness is drawn, or else the first that is on record, by
    `sharpness_of_settings`.

    Args:
        results: of one run or several, each with a curve. Runs measured in another BatchNorm mode than most, or
            on other data, are left out by name.
    """
    shown = same_mode(results)
    if len(shown) > MOST_RUNS:
        return _of_many(shown, left_out_of(results, shown))
    frame = _joined(thinned(_curves(shown), "value"))
    frame["panel"] = frame["operator"].map(OPERATORS)
    frame = within_axes(frame, {r.facts.name for r in shown if r.facts.status == "diverged"})
    frame = _with_ends(frame, shown)
    tips = _tips()
    has_draws = bool((frame["draws"] > 1).any())
    if has_draws:
        tips += [alt.Tooltip("draws:Q"), *(alt.Tooltip(f"{end}:Q", format=".4~g") for end in ("low", "high"))]
        frame = _with_bars(frame)
    # The limit is a curve among the others, so that it shares their panel and scale; conditions give it its look.
    is_limit = "datum.line === 'limit'"
    scale = theme.optimizer_scale(frame["optimizer"])
    colour = alt.condition(is_limit, alt.value("#888888"), alt.Color("optimizer:N", scale=scale, title="optimizer"))
    dash = alt.condition(is_limit, alt.value([6, 4]), run_dash(frame))
    base = alt.Chart().encode(
        x=theme.step_axis("step:Q", alt.Scale(nice=False)),
        y=alt.Y("value:Q", scale=alt.Scale(type="log"), title=None, axis=_axis(frame)),
        detail=["run:N", "line:N", "piece:N"],
        color=colour,
    )
    line = base.mark_line(strokeWidth=1.6).encode(strokeDash=dash)
    points = base.mark_point(filled=True).encode(
        tooltip=tips, size=alt.condition(is_limit, alt.value(0), alt.value(26))
    )
    layers, on = [line, points], measured_on(frame)
    if has_draws:
        on += " (bars: 95 % of the mean)"
        bars = base.transform_filter("isValid(datum.low) && datum.edge === ''").mark_rule(strokeWidth=1.2, clip=True)
        layers.insert(1, bars.encode(y=alt.Y("bar:Q"), y2="high:Q"))
    layers += [
        base.transform_filter(f"datum.edge === '{edge}'")
        .mark_point(shape=shape, filled=True, size=55, opacity=1)
        .encode(y=alt.value(place), tooltip=tips)
        for edge, shape, place in (
            ("above", "triangle-up", 5),
            ("below", "triangle-down", _PANEL - 5),
            ("end", _CROSS, 0),
        )
        if (frame["edge"] == edge).any()
    ]
    words = edge_words(*(frame[frame["edge"] == edge] for edge in ("above", "below")))
    words += ["✕ diverged"] if (frame["edge"] == "end").any() else []
    of = sharpness_subtitle(shown, on, left_out=left_out_of(results, shown))
    return (
        alt.layer(*layers, data=inline(frame))
        .properties(width=theme.WIDTH, height=_PANEL)
        .facet(
            row=alt.Row(
                "panel:N",
                sort=list(OPERATORS.values()),
                title=None,
                header=alt.Header(labelOrient="top", labelAnchor="start"),
            )
        )
        .resolve_scale(y="independent")
        .properties(title=theme.title(_seen(shown), "; ".join([of, *words])))
    )


def _tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("told:Q", title="sharpness", format=".4~g"),
        alt.Tooltip("error:Q", title="residual", format=".2~g"),
        alt.Tooltip("converged:N"),
    ]


def _of_many(shown: Sequence[Minimizer], left_out: Sequence[str]) -> alt.LayerChart | alt.ConcatChart:
    """The sharpness of more runs than have a line each."""
    told = {name for r in shown for name in r.curves["operator"]}
    operator = next(name for name in ("adaptive", *OPERATORS, *told) if name in told)
    own = [r for r in shown if (r.curves["operator"] == operator).any()]
    rows = _joined([r.curves[r.curves["operator"] == operator] for r in own])
    of = [sharpness_subtitle(own, measured_on(rows), left_out=left_out)]
    if others := [name for name in OPERATORS if name in told - {operator}]:
        of.append(f"also on record: {', '.join(others)} (drawn of {MOST_RUNS} runs at most)")
    label = OPERATORS.get(operator, operator).split(" (")[0]
    chart: alt.LayerChart = sharpness_of_settings(own, operator, label, _seen(own), of)
    return chart


def _with_ends(frame: pd.DataFrame, results: Sequence[Minimizer]) -> pd.DataFrame:
    """The rows, and one in each panel for each run that diverged, with ``edge`` "end"."""
    panels = frame[["operator", "panel"]].drop_duplicates()
    ends = [
        panels.assign(**labels(r.facts), step=r.facts.bad_loss_step, line="end", edge="end", piece=0, draws=1)
        for r in results
        if r.facts.status == "diverged" and r.facts.bad_loss_step is not None
    ]
    return _joined([frame, *ends])


def _axis(frame: pd.DataFrame) -> alt.Axis:
    """Lines at 1-2-5 where no panel has more than a few decades, else at powers of ten."""
    values = frame["value"].where(frame["value"] > 0).astype(float)
    spans = np.log10(values.groupby(frame["operator"]).max() / values.groupby(frame["operator"]).min())
    digits = (1, 2, 5) if spans.max() <= _MOST_DECADES else (1,)
    return alt.Axis(values=[float(f"{digit}e{k}") for k in _POWERS for digit in digits], format="~g")


def spectral_density(results: Sequence[Minimizer]) -> alt.Chart | alt.FacetChart:
    """The last spectral density of each run and operator, in a panel per operator.

    Args:
        results: of one run or several, each with a density on record. The BatchNorm mode and the data are those of
            most runs' last densities; runs without a density of these are left out by name.

    Raises:
        NothingToShowError: no density is a number above zero.
    """
    # Densities are measured after training, often in another mode than the curves: their own mode counts here.
    modes = Counter(
        tuple(r.spectrum.sort_values("step", kind="stable").iloc[-1][["bn_mode", "split"]]) for r in results
    )
    mode = max(modes, key=modes.__getitem__)
    shown, frames = [], []
    for r in results:
        rows = r.spectrum[(r.spectrum["bn_mode"] == mode[0]) & (r.spectrum["split"] == mode[1])]
        curves = [
            densities.drawn(own[own["step"] == own["step"].max()]) for _, own in rows.groupby("operator", sort=False)
        ]
        if any(map(len, curves)):
            shown.append(r)
        frames += [_labelled(r, curve) for curve in curves if len(curve)]
    if not frames:
        raise NothingToShowError(
            f"no spectral density of {results[0].facts.name} is a number above zero: measure it again with "
            f"tvlars-probe sharpness --density"
        )
    frame = _joined(thinned(frames, "density"))
    on = measured_on(frame)
    frame, beyond = densities.within_reach(frame, {r.facts.name for r in shown if r.facts.status == "diverged"})
    operators = [name for name in EIGENVALUES if name in {*frame["operator"]}]
    frame = frame.assign(panel=frame["operator"].map(EIGENVALUES))
    ends = {name: theme.number(frame.loc[frame["operator"] == name, "grid"].max()) for name in operators}
    seen = "Most eigenvalues are near zero, the spectrum reaches to " + " and ".join(
        f"{end}{'' if [*ends] == ['hessian'] else f' ({OF[name]})'}" for name, end in ends.items()
    )
    chart = (
        alt.Chart(inline(frame))
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("grid:Q", title=EIGENVALUES[operators[0]] if len(operators) == 1 else "eigenvalue λ"),
            y=alt.Y(
                "height:Q",
                scale=alt.Scale(type="log"),
                title="density (share per unit of λ)",
                axis=theme.log_axis(frame["height"]),
            ),
            color=alt.Color("optimizer:N", scale=theme.optimizer_scale(frame["optimizer"])),
            strokeDash=run_dash(frame),
            detail=["run:N", "piece:N"],
            tooltip=[
                "run:N",
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("grid:Q", title="λ", format=".4~g"),
                alt.Tooltip("density:Q", format=".3~g"),
            ],
        )
        .properties(width=theme.WIDTH, height=240)
    )
    heading = theme.title(
        seen, "; ".join([sharpness_subtitle(shown, on, mode, left_out=left_out_of(results, shown)), *beyond])
    )
    if len(operators) == 1:
        return chart.properties(title=heading)
    header = alt.Header(labelOrient="top", labelAnchor="start")
    panels = alt.Row("panel:N", sort=[EIGENVALUES[name] for name in operators], title=None, header=header)
    return chart.facet(row=panels).resolve_scale(x="independent", y="independent").properties(title=heading)


def _curves(results: Sequence[Minimizer]) -> list[pd.DataFrame]:
    """Of each run and operator the curve and, where it has one, its limit of stability as another curve."""
    # Columns are added to all rows at once: there may be thousands of runs, each of a few rows.
    told = _joined(
        [_labelled(r, r.curves) for r in results]
        + [
            _labelled(r, r.mini_batch.curves.rename(columns={"measure": "operator"}))
            for r in results
            if r.mini_batch is not None
        ]
    ).assign(line="sharpness")
    limit = told[told["limit"].notna()]
    nothing = dict.fromkeys(("error", "standard_error", "low", "high"), np.nan)
    limit = limit.assign(line="limit", value=limit["limit"], converged=None, draws=1, **nothing)
    both = _joined([told, limit]) if len(limit) else told
    curves = both.groupby(["run", "operator", "line"], sort=False)
    # The runs in their order, and of each run a curve before its limit.
    places = {r.facts.name: place for place, r in enumerate(results)}
    return [rows for _, rows in sorted(curves, key=lambda curve: (places[str(curve[0][0])], curve[0][1]))]


def _with_bars(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with ``bar``, the lower end of each interval's bar.

    An interval from few draws may reach to zero or below, where a logarithmic scale has no place: its bar ends at the
    lowest point of its panel.
    """
    # A mean beyond its panel has a mark at the edge and no bar: its interval is no part of the panel either.
    shown = frame[["value", "low"]].where(frame["edge"] == "")
    ends = shown.where(shown > 0)
    lowest = ends.min(axis=1).groupby(frame["operator"]).transform("min")
    return frame.assign(bar=frame["low"].where(~(frame["low"] <= 0), lowest))


def _labelled(r: Minimizer, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the columns by which charts tell runs apart."""
    return frame.assign(**labels(r.facts))


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def _seen(results: Sequence[Minimizer]) -> str:
    """The title: peak and end of one run's raw sharpness, or the verdict; of several runs the count of each verdict."""
    if len(results) == 1:
        summary = results[0].summary.set_index("operator")
        if "hessian" in summary.index:
            peak, step, end = (float(summary[name]["hessian"]) for name in ("early_peak", "peak_step", "end"))
            if np.isfinite(peak):
                early = f"{theme.number(peak)} at step {step:,.0f}"
                return f"Early peak of the sharpness: {early}; median at the end: {theme.number(end)}"
    if len(results) == 1:
        return f"Trapped or escaped? {results[0].verdict.answer}"
    counts = Counter(r.verdict.answer for r in results)
    return "Trapped or escaped? " + ", ".join(f"{answer}: {n} of {len(results)}" for answer, n in counts.items())
