"""What all charts share: one colour per optimizer, which colour-blind readers can tell apart, and the look of axes.

The optimizers' colours stand in `tvlars_probe.optimizers.registry`. All colours are legible on white and on near-black.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from tvlars_probe.charts.names import pixels, shortened
from tvlars_probe.optimizers.registry import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OPTIMIZER_COLOURS = {entry.class_name: entry.colour for entry in OPTIMIZERS.values()}
OTHER_COLOUR = "#888888"

_FORMS = (
    "circle", "square", "triangle-up", "diamond", "triangle-left", "triangle-right", "triangle-down",
    "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",  # a pentagon
    "M0,-1L.25,-.25L1,0L.25,.25L0,1L-.25,.25L-1,0L-.25,-.25Z",  # a star
    "M-1,-.35L1,-.35L1,.35L-1,.35Z",  # a bar
)  # fmt: skip
"""Shapes of points. A cross isn't among them: it marks what diverged."""

_SHAPES = dict(zip(OPTIMIZER_COLOURS, _FORMS, strict=True))
"""By optimizer, the shape of its points."""

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

NAME_ROOM = 240.0
"""Width of a name beside an axis or in a legend."""

NARROW_ROOM = 110.0
"""The same on a narrow screen."""

NARROW = 640
"""Screens that are less wide count as narrow."""

MOST_TICKS = 12
"""Most lines of a logarithmic axis."""

PICKED = "picked"
"""Name of the Vega-Lite parameter that holds the layer selected on a page. It is empty while none is selected."""

CHOSEN = "chosen"
"""Name of the Vega-Lite parameter that holds other labels of the selected layer: its modules, and groups it is in."""


def optimizer_scale(optimizers: Iterable[str | None]) -> alt.Scale:
    """The colour scale of these optimizers. Each optimizer has the same colour in every chart."""
    # The domain ties each name to its colour: Vega would pair names and colours in an order of its own.
    names = list(dict.fromkeys(str(name) for name in optimizers))
    return alt.Scale(domain=names, range=[OPTIMIZER_COLOURS.get(name, OTHER_COLOUR) for name in names])


def optimizer_shape(optimizers: Iterable[str | None]) -> alt.Shape:
    """Shapes of points, one per optimizer in every chart, which tell them apart in grey."""
    names = list(dict.fromkeys(str(name) for name in optimizers))
    scale = alt.Scale(domain=names, range=[_SHAPES.get(name, "circle") for name in names])
    return alt.Shape("optimizer:N", scale=scale, title="optimizer")


def shapes(count: int) -> list[str]:
    """So many shapes of points, different ones as long as there are enough."""
    return [_FORMS[place % len(_FORMS)] for place in range(count)]


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


def name_axis(
    names: Sequence[str], room: float = NAME_ROOM, groups: Mapping[str, Sequence[str]] | None = None, **look: Any
) -> alt.Axis:
    """An axis of names, shortened so that they fit beside it and differ.

    The data keep the whole names: selections, tooltips and the order of the axis go by these.

    Args:
        names: every name on the axis.
        room: width of a name.
        groups: for each name of several others, these: its label is the first of them, and how many more there are.
        **look: further properties of the axis.
    """
    # Vega cuts labels at their ends, by default at 180 pixels; 0 is no limit.
    return alt.Axis(labelLimit=0, **_labels(names, room, 11.0, groups or {}), **look)


def name_legend(names: Sequence[str], room: float = NAME_ROOM, **look: Any) -> alt.Legend:
    """A legend of names, shortened as those of `name_axis`."""
    return alt.Legend(labelLimit=0, **_labels(names, room, 10.0, {}), **look)


def _labels(names: Sequence[str], room: float, size: float, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The Vega expression that leads from a name to its label; none where every name is its own label."""
    firsts = {name: groups[name][0] if name in groups else name for name in names}
    more = {name: f" +{len(groups[name]) - 1}" if name in groups else "" for name in names}
    lists = []
    for width in (min(room, NARROW_ROOM), room):
        short = shortened(firsts.values(), width, lambda text: pixels(text, size))
        lists.append([short[firsts[name]] + more[name] for name in names])
    if lists == [[*names], [*names]]:
        return {}
    # A list, not an object: names such as "constructor" are properties of every object. JSON is an expression, too.
    known, narrow, wide = map(json.dumps, (names, *lists))
    return {"labelExpr": f"(windowSize()[0] < {NARROW} ? {narrow} : {wide})[indexof({known}, datum.value)]"}


def title(text: str, subtitle: str) -> alt.TitleParams:
    """A chart's title says what is seen, its subtitle of which runs and data."""
    return alt.TitleParams(text=text, subtitle=subtitle)


def panel_title(text: str) -> alt.TitleParams:
    """What stands above one of several plots."""
    return alt.TitleParams(text=text, fontSize=12, fontWeight="normal", offset=4)


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
            "labelLimit": 0,  # Vega cuts labels at 160 pixels by default
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
        },
        "text": {"color": ink},
        "rule": {"color": ink},
    }


def step_axis(field: str, scale: alt.Scale) -> alt.X:
    """An axis of steps, which are whole numbers."""
    return alt.X(field, title="step", scale=scale, axis=whole_axis())


def whole_axis() -> alt.Axis:
    """An axis of whole numbers."""
    # Vega takes the least step for a wish: over a short range it puts ticks at halves, too.
    return alt.Axis(tickMinStep=1, format=",d", labelExpr="datum.value % 1 ? '' : datum.label")


def log_axis(values: Iterable[float], most: int = MOST_TICKS, **further: Any) -> alt.Axis:
    """An axis for a logarithmic scale, with lines at 1, 2 and 5 of each decade, or at powers of ten over many decades.

    Values that have fewer than two such lines among them leave the choice to Vega.

    Args:
        values: what the axis shows.
        most: most lines.
        **further: further properties of the axis.
    """
    told = _logs(values)
    lines = log_ticks(told, most)
    within = [line for line in lines if told and min(told) - 1e-9 <= math.log10(line) <= max(told) + 1e-9]
    if len(within) < 2:
        return alt.Axis(tickCount=5, format="~g", **further)
    return alt.Axis(values=lines, format=_format(told), **further)


def log_ticks(logs: Sequence[float], most: int = MOST_TICKS) -> list[float]:
    """Lines of a logarithmic axis, at most ``most``: at 1-2-5, else at powers of ten, else at some of these.

    Args:
        logs: base-ten logarithms of what the axis shows.
        most: most lines.
    """
    if not logs:
        return []
    first, last = math.floor(min(logs)), math.ceil(max(logs))
    if 3 * (last - first) <= most + 1:
        # Parsed rather than multiplied: 3 * 0.1 isn't 0.3, and an axis would write out the difference.
        return [float(f"{digit}e{k}") for k in range(first, last + 1) for digit in (1, 2, 5)]
    stride = max(-(-(last - first) // most), 1)
    return [float(f"1e{k}") for k in range(first, last + 1, stride)]


def log_format(values: Iterable[float]) -> str:
    """Format of the numbers on a logarithmic scale: written out, unless they are very small or very large."""
    return f".3{_format(_logs(values), 6)}"


def _logs(values: Iterable[float]) -> list[float]:
    return [math.log10(v) for v in values if v > 0 and math.isfinite(v)]


def _format(logs: Sequence[float], most: int = 4) -> str:
    """How powers of ten are written: out, where none has more than ``most`` zeros."""
    first, last = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (0, 0)
    return "~g" if first > -most and last <= most else "~e"


def number(value: float) -> str:
    """A number in a title: three digits, but a whole number from 1,000 up to 10 million."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
