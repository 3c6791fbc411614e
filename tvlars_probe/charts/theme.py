"""What all charts share: colours that colour-blind readers can tell apart, one per optimizer, and the look of axes.

The optimizers' colours stand in their registry; all colours are legible on white and on near-black.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from tvlars_probe.optimizers.registry import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Iterable

OPTIMIZER_COLOURS = {entry.class_name: entry.colour for entry in OPTIMIZERS.values()}
OTHER_COLOUR = "#888888"

ROLE_COLOURS = {"adapted": "#0072B2", "not adapted": "#E69F00"}
"""Of a tensor."""

QUANTITY_COLOURS = {
    "layer-wise norm ratio ‖w‖/‖g‖": "#0072B2",
    "gradient norm ‖g‖": "#D55E00",
    "update-to-weight ratio ‖Δw‖/‖w‖": "#009E73",
}

SEQUENTIAL: Literal["viridis"] = "viridis"
BAD_COLOUR = "#EE3377"
"""Of what has no place on a scale: infinite, NaN."""
WIDTH = 640

PICKED = "picked"
"""Name of the parameter that holds the layer selected in all charts of a page; empty for none."""

CHOSEN = "chosen"
"""Name of the parameter that holds the further labels that stand for it: a page knows what is in a group of layers."""


def optimizer_scale(optimizers: Iterable[str | None]) -> alt.Scale:
    """The colours of these optimizers, the same in every chart."""
    names = list(dict.fromkeys(str(name) for name in optimizers))
    return alt.Scale(domain=names, range=[OPTIMIZER_COLOURS.get(name, OTHER_COLOUR) for name in names])


def picked() -> tuple[alt.Parameter, alt.Parameter]:
    """The page's selected layer; a page sets it, a file by itself leaves it empty."""
    return alt.param(name=PICKED, value=""), alt.param(name=CHOSEN, value=[])


def where_picked(chosen: float, others: float, none: float | None = None) -> Any:
    """An opacity: ``chosen`` for the selected layer, ``others`` beside it, ``none`` while nothing is selected.

    A module and its tensors are selected together.
    """
    unselected = chosen if none is None else none
    same = (
        f"{PICKED} === datum.parameter || indexof({PICKED}, datum.parameter + '.') === 0 || "
        f"indexof(datum.parameter, {PICKED} + '.') === 0 || indexof({CHOSEN}, datum.parameter) >= 0"
    )
    return {"expr": f"{PICKED} === '' ? {unselected} : ({same}) ? {chosen} : {others}"}


def title(text: str, subtitle: str) -> alt.TitleParams:
    """What is seen, and of what."""
    return alt.TitleParams(text=text, subtitle=subtitle)


def config(ink: str = "#222222") -> dict[str, Any]:
    """The look, for ``spec["config"]``: all lines and letters in ``ink`` on a transparent ground."""
    font = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    words = {"labelColor": ink, "titleColor": ink, "labelFont": font, "titleFont": font}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            **words,
            "domainColor": ink,
            "domainOpacity": 0.5,
            "tickColor": ink,
            "tickOpacity": 0.5,
            "gridColor": ink,
            "gridOpacity": 0.12,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
        },
        "legend": {
            **words,
            "symbolOpacity": 1,
            "gradientOpacity": 1,
            "titleFontWeight": "normal",
            "labelLimit": 240,
            "orient": "bottom",
            "columns": 4,
        },
        "header": {**words, "titleFontWeight": "normal"},
        "title": {
            "anchor": "start",
            "color": ink,
            "subtitleColor": ink,
            "font": font,
            "subtitleFont": font,
            "fontSize": 14,
            "subtitleFontSize": 12,
            "offset": 10,
            "limit": 900,
        },
        "text": {"color": ink},
        "rule": {"color": ink},
    }


def log_axis(values: Iterable[float], **further: Any) -> alt.Axis:
    """An axis for a logarithmic scale: lines at powers of ten only, where there are two or more."""
    told = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    first, last = (math.floor(min(told)), math.ceil(max(told))) if told else (0, 0)
    stride = max((last - first) // 6, 1)
    if told and max(told) - min(told) < 1.5:
        return alt.Axis(tickCount=5, format="~g", **further)
    powers = [10.0**exponent for exponent in range(first, last + 1, stride)]
    plain = first >= -3 and last <= 4
    return alt.Axis(values=powers, format="~g" if plain else "~e", **further)


def number(value: float) -> str:
    """A number in a title."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def counted(count: int, what: str = "run") -> str:
    """So many of a thing."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
