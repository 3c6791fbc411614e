"""What all charts share: one colour per optimizer, which colour-blind readers can tell apart, and the look of axes.

The optimizers' colours stand in `tvlars_probe.optimizers.registry`. All colours are legible on white and on near-black.
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
"""Colours of tensors, by whether the optimizer scales their rate by a trust ratio."""

QUANTITY_COLOURS = {
    "layer-wise norm ratio ‖w‖/‖g‖": "#0072B2",
    "gradient norm ‖g‖": "#D55E00",
    "update-to-weight ratio ‖Δw‖/‖w‖": "#009E73",
}
"""Colours of explosions, by the labels in `tvlars_probe.analyses.explosions.QUANTITIES`."""

SEQUENTIAL: Literal["viridis"] = "viridis"
"""Colour scheme of heat maps."""

BAD_COLOUR = "#EE3377"
"""Colour of values that have no place on a scale: infinite ones and NaN."""

WIDTH = 640
"""Width of a plot without its axis labels, in units of the chart."""

PICKED = "picked"
"""Name of the Vega-Lite parameter that holds the layer selected on a page. It is empty while none is selected."""

CHOSEN = "chosen"
"""Name of the Vega-Lite parameter that holds other labels of the selected layer: its modules, and groups it is in."""


def optimizer_scale(optimizers: Iterable[str | None]) -> alt.Scale:
    """The colour scale of these optimizers. Each optimizer has the same colour in every chart."""
    # The domain ties each name to its colour: Vega would pair names and colours in an order of its own.
    names = list(dict.fromkeys(str(name) for name in optimizers))
    return alt.Scale(domain=names, range=[OPTIMIZER_COLOURS.get(name, OTHER_COLOUR) for name in names])


def picked() -> tuple[alt.Parameter, alt.Parameter]:
    """The two Vega-Lite parameters of a selection. A page sets them; in a file by itself they stay empty."""
    return alt.param(name=PICKED, value=""), alt.param(name=CHOSEN, value=[])


def where_picked(chosen: float, others: float, none: float | None = None) -> Any:
    """A Vega expression for the opacity of a mark, by its column ``parameter``.

    A module and its tensors are selected together.

    Args:
        chosen: opacity of the selected layer.
        others: opacity of all other layers while one is selected.
        none: opacity of every layer while none is selected; ``chosen`` by default.
    """
    unselected = chosen if none is None else none
    # indexof(a, b) === 0: a begins with b. The dot ends a module's name, so that "layer1" doesn't select "layer10".
    same = (
        f"{PICKED} === datum.parameter || indexof({PICKED}, datum.parameter + '.') === 0 || "
        f"indexof(datum.parameter, {PICKED} + '.') === 0 || indexof({CHOSEN}, datum.parameter) >= 0"
    )
    return {"expr": f"{PICKED} === '' ? {unselected} : ({same}) ? {chosen} : {others}"}


def title(text: str, subtitle: str) -> alt.TitleParams:
    """A chart's title says what is seen, its subtitle of which runs and data."""
    return alt.TitleParams(text=text, subtitle=subtitle)


def config(ink: str = "#222222") -> dict[str, Any]:
    """The look, as ``spec["config"]``: all lines and letters in ``ink`` on a transparent ground."""
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
            # A symbol otherwise has the opacity of its marks: faint for a band, changed by a selection.
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
    """An axis for a logarithmic scale, with lines at powers of ten only.

    Values that span less than 1.5 decades hold too few powers of ten: there Vega chooses about five lines.
    """
    told = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    first, last = (math.floor(min(told)), math.ceil(max(told))) if told else (0, 0)
    stride = max((last - first) // 6, 1)  # a dozen labels at most
    if told and max(told) - min(told) < 1.5:
        return alt.Axis(tickCount=5, format="~g", **further)
    powers = [10.0**exponent for exponent in range(first, last + 1, stride)]
    plain = first >= -3 and last <= 4
    return alt.Axis(values=powers, format="~g" if plain else "~e", **further)


def number(value: float) -> str:
    """A number in a title: three digits, but a whole number from 1,000 up to 10 million."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def counted(count: int, what: str = "run") -> str:
    """A count with its noun: "1 run", "2,000 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
