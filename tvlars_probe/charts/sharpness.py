"""Sharpness by step beside its limit, spectral densities, and the sharpness of single layers' blocks.

A chart holds one BatchNorm mode and one part of the data: in another mode the loss is another function, with another
Hessian.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.draws import sample_text
from tvlars_probe.analyses.wording import some_of
from tvlars_probe.charts import densities, theme
from tvlars_probe.charts.binning import MOST_BARS, inline, thinned
from tvlars_probe.charts.limits import edge_words, within_axes
from tvlars_probe.charts.runs_apart import labels, run_dash
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.minimizer import Minimizer

OPERATORS = {
    "hessian": "sharpness λ₁(H)",
    "relative": "relative sharpness (tensors scaled by their norm)",
    "adaptive": "adaptive sharpness (of the outputs, free of scale)",
    "effective": "effective sharpness (grey: limit of stability)",
    "ggn": "sharpness of the Gauss-Newton matrix",
    "batch_sharpness": "batch sharpness: along mini-batches' gradients (grey: 2/rate)",
    "directional_sharpness": "directional sharpness: along the update (grey: 2/rate)",
    "critical_sharpness": "critical sharpness: where the update raises the loss (grey: 2/rate)",
}
"""The panels of `sharpness_curves` from top to bottom, by operator."""

_OF = {
    "hessian": "the Hessian",
    "relative": "the relative Hessian",
    "effective": "the effective Hessian",
    "ggn": "the Gauss-Newton matrix",
    "adaptive": "the adaptive operator",
}
EIGENVALUES = {name: f"eigenvalue λ of {what}" for name, what in _OF.items()}
"""Label of a spectral density's axis, or of its panel, by operator."""

_PANEL = 150
"""Height of a panel."""

_POWERS = [10.0**k for k in range(-6, 13)]
"""Lines of the panels' axes. All panels have one axis but a range each: it holds every power that may occur."""


def same_mode(results: Sequence[Minimizer]) -> list[Minimizer]:
    """The results that have the BatchNorm mode and the data of the first one with sharpness on record."""
    told = [r for r in results if r.bn_mode is not None]
    return [r for r in told if (r.bn_mode, r.split) == (told[0].bn_mode, told[0].split)]


def sharpness_curves(results: Sequence[Minimizer]) -> alt.FacetChart:
    """Sharpness by step, each operator's in a panel of its own; means over draws with their 95 % intervals.

    Args:
        results: of one run or several, each with a curve. Runs measured in another BatchNorm mode than the first, or
            on other data, are left out by name.
    """
    shown = same_mode(results)
    frame = _joined(thinned(_curves(shown), "value"))
    frame["panel"] = frame["operator"].map(OPERATORS)
    frame = within_axes(frame, {r.facts.name for r in shown if r.facts.status == "diverged"})
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("told:Q", title="sharpness", format=".4~g"),
        alt.Tooltip("error:Q", title="residual", format=".2~g"),
        alt.Tooltip("converged:N"),
    ]
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
        y=alt.Y("value:Q", scale=alt.Scale(type="log"), title=None, axis=alt.Axis(values=_POWERS, format="~g")),
        detail=["run:N", "line:N", "piece:N"],
        color=colour,
    )
    line = base.mark_line(strokeWidth=1.6).encode(strokeDash=dash)
    points = base.mark_point(filled=True).encode(
        tooltip=tips, size=alt.condition(is_limit, alt.value(0), alt.value(26))
    )
    layers, on = [line, points], _on(frame)
    if has_draws:
        on += " (bars: 95 % of the mean)"
        bars = base.transform_filter("isValid(datum.low) && datum.edge === ''").mark_rule(strokeWidth=1.2, clip=True)
        layers.insert(1, bars.encode(y=alt.Y("bar:Q"), y2="high:Q"))
    layers += [
        base.transform_filter(f"datum.edge === '{edge}'")
        .mark_point(shape=shape, filled=True, size=55, opacity=1)
        .encode(y=alt.value(place), tooltip=tips)
        for edge, shape, place in (("above", "triangle-up", 5), ("below", "triangle-down", _PANEL - 5))
        if (frame["edge"] == edge).any()
    ]
    words = edge_words(*(frame[frame["edge"] == edge] for edge in ("above", "below")))
    of = _subtitle(shown, on, left_out=_others(results, shown))
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


def spectral_density(results: Sequence[Minimizer]) -> alt.Chart | alt.FacetChart:
    """The last spectral density of each run and operator, in a panel per operator.

    Args:
        results: of one run or several, each with a density on record. The first run's last density sets the BatchNorm
            mode and the data; runs without a density of these are left out by name.

    Raises:
        NothingToShowError: no density is a number above zero.
    """
    # Densities are measured after training, often in another mode than the curves: their own mode counts here.
    mode = tuple(results[0].spectrum.sort_values("step", kind="stable").iloc[-1][["bn_mode", "split"]])
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
    on = _on(frame)
    frame, beyond = densities.within_reach(frame, {r.facts.name for r in shown if r.facts.status == "diverged"})
    operators = [name for name in EIGENVALUES if name in {*frame["operator"]}]
    frame = frame.assign(panel=frame["operator"].map(EIGENVALUES))
    ends = {name: theme.number(frame.loc[frame["operator"] == name, "grid"].max()) for name in operators}
    seen = "Most eigenvalues are near zero, the spectrum reaches to " + " and ".join(
        f"{end}{'' if [*ends] == ['hessian'] else f' ({_OF[name]})'}" for name, end in ends.items()
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
    heading = theme.title(seen, "; ".join([_subtitle(shown, on, mode, left_out=_others(results, shown)), *beyond]))
    if len(operators) == 1:
        return chart.properties(title=heading)
    header = alt.Header(labelOrient="top", labelAnchor="start")
    panels = alt.Row("panel:N", sort=[EIGENVALUES[name] for name in operators], title=None, header=header)
    return chart.facet(row=panels).resolve_scale(x="independent", y="independent").properties(title=heading)


def layer_blocks(result: Minimizer) -> alt.LayerChart:
    """Sharpness of each layer's own block at the last step at which blocks were measured.

    Blocks are the Hessian's, or of the first of the other operators where none of the Hessian is on record. Blocks of
    one kind are drawn: layers, or else single tensors. The sharpest `MOST_BARS` are drawn.

    Raises:
        NothingToShowError: no block has a sharpness that is a number.
    """
    rows = result.blocks[np.isfinite(result.blocks["value"].astype(float))]
    if not len(rows):
        raise NothingToShowError("no sharpness of a single layer is on record (tvlars-probe sharpness --per-layer)")
    operator = next((name for name in OPERATORS if name in {*rows["operator"]}), rows["operator"].iloc[0])
    rows = rows[rows["operator"] == operator]
    last = rows[rows["step"] == rows["step"].max()]
    of_last = last.iloc[-1]
    mode = (of_last["bn_mode"], of_last["split"])
    last = last[(last["bn_mode"] == mode[0]) & (last["split"] == mode[1])]
    last = last[last["scope_kind"] == of_last["scope_kind"]]
    # Where a block was measured again, its last row stands.
    every = last.drop_duplicates("scope", keep="last")
    rows = every.sort_values("value", ascending=False, kind="stable").head(MOST_BARS)
    rows = rows.rename(columns={"scope": "parameter"})[["parameter", "value", "error", "step"]]
    top = rows.iloc[0]
    order = rows["parameter"].tolist()
    which = "" if operator == "hessian" else f" of {_OF.get(operator, operator)}"
    seen = f"The sharpest block{which} is {top['parameter']}, {theme.number(top['value'])} at step {top['step']:,}"
    of = _subtitle([result], _on(every), mode)
    if len(rows) < len(every):
        of += f"; the sharpest {len(rows)} of {len(every):,} blocks"
    base = alt.Chart(inline(rows), title=theme.title(seen, of)).encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=theme.name_axis(order)),
        opacity=alt.value(theme.where_picked(1.0, 0.2)),
        tooltip=[
            alt.Tooltip("parameter:N", title="layer"),
            alt.Tooltip("value:Q", title="sharpness", format=".4~g"),
            alt.Tooltip("error:Q", title="residual", format=".2~g"),
        ],
    )
    bars = base.mark_bar(color=theme.OPTIMIZER_COLOURS.get(str(result.facts.optimizer), theme.OTHER_COLOUR)).encode(
        x=alt.X("value:Q", title=f"sharpness of the layer's block λ₁{which}")
    )
    return bars.add_params(*theme.picked()).properties(width=theme.WIDTH, height=min(max(18 * len(rows), 60), 640))


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


def _on(rows: pd.DataFrame) -> str:
    """What the rows were measured on, each size of sample and number of draws once."""
    told = rows[["samples", "draws"]].drop_duplicates()
    texts = [sample_text(size, draws, "a") for size, draws in told.itertuples(index=False)]
    return " and ".join(texts)


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


def _others(results: Sequence[Minimizer], shown: Sequence[Minimizer]) -> list[str]:
    """Names of the runs that aren't shown."""
    return [r.facts.name for r in results if not any(r is one for one in shown)]


def _subtitle(
    results: Sequence[Minimizer],
    on: str,
    mode: tuple[str | None, str | None] | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """Which runs are shown, on which data and sample (``on``), in which BatchNorm mode (``mode``, or the curves')."""
    first = results[0]
    bn_mode, split = mode or (first.bn_mode, first.split)
    who = f"{first.facts.name}: {first.facts.method}" if len(results) == 1 else f"{len(results)} runs"
    of = f"{who}; loss on {split} data, {on}, BatchNorm mode {bn_mode}"
    if not left_out:
        return of
    return f"{of}; left out, as measured in another mode: {some_of(left_out, most=3)}"
