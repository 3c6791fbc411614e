"""Curves as lines: one a run or a setting, in one plot, or in panels by peak rate where they would be too many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import inline, pieces
from tvlars_probe.charts.runs_apart import apart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.settings import Setting
    from tvlars_probe.charts.limits import Limits

    Draw = Callable[[pd.DataFrame, pd.DataFrame, float, dict[str, Any]], Any]

MOST_LINES = 5
"""Most lines in one plot where there are several peak rates: beyond, each rate has a panel of its own."""

MOST_PANELS = 12
"""Most panels of a chart."""

COLUMNS = 3
"""Panels side by side."""

PANEL_TICKS = 7
"""Most lines of a panel's logarithmic axis."""

PANEL_HEIGHT = 150
"""Height of a panel, in units of the chart."""

_BETWEEN = 20
"""Room between panels."""


@dataclass(frozen=True, slots=True)
class Named:
    """What the lines of a chart are called.

    Attributes:
        settings: the settings that are drawn, a line each.
        names: their names in the legend.
        title: title of the legend: "run" where each setting has one run, else "setting".
        rates: the peak rates that have a panel each; None where all lines stand in one plot.
        left_out: number of peak rates for which there was no room.
    """

    settings: tuple[Setting, ...]
    names: tuple[str, ...]
    title: str
    rates: tuple[float | None, ...] | None
    left_out: int = 0

    @classmethod
    def of(cls, settings: Sequence[Setting]) -> Named:
        """Names for the lines of these settings, and the panels that they stand in."""
        rates = sorted({s.rate for s in settings}, key=_by_size)
        methods, kinds = (
            [*dict.fromkeys(which)] for which in zip(*((s.optimizer, s.label) for s in settings), strict=True)
        )
        settings = sorted(settings, key=lambda s: (methods.index(s.optimizer), kinds.index(s.label), _by_size(s.rate)))
        left_out = 0
        if in_panels := len(settings) > MOST_LINES and len(rates) > 1:
            kept = rates
            if len(rates) > MOST_PANELS:  # evenly, with both ends
                kept = [rates[i * (len(rates) - 1) // (MOST_PANELS - 1)] for i in range(MOST_PANELS)]
            settings, left_out, rates = [s for s in settings if s.rate in kept], len(rates) - len(kept), kept
        alone = all(len(s.runs) == 1 for s in settings) and not in_panels
        with_rate = len(rates) > 1 and not in_panels
        names = [s.runs[0].name if alone else _name(s, with_rate=with_rate) for s in settings]
        keys = [(name, s.rate) for name, s in zip(names, settings, strict=True)]
        names = [
            name if keys.count(key) == 1 or alone else f"{name} ({s.runs[0].name})"
            for name, key, s in zip(names, keys, settings, strict=True)
        ]
        title = "run" if alone else "setting"
        return cls(tuple(settings), tuple(names), title, tuple(rates) if in_panels else None, left_out)

    @property
    def several(self) -> bool:
        """Whether any line is the mean of several runs."""
        return any(len(s.runs) > 1 for s in self.settings)

    def label(self, setting: Setting, name: str) -> dict[str, Any]:
        """The columns by which a chart tells its lines apart."""
        first = setting.runs[0]
        return {
            "line": name,
            "run": first.name if len(setting.runs) == 1 else f"{len(setting.runs)} runs",
            "optimizer": setting.optimizer,
            "schedule": first.schedule or "none",
            "rate": setting.rate,
        }

    def frame(self, curves: Sequence[pd.DataFrame], x: str) -> pd.DataFrame:
        """The curves of all settings in one frame, with ``piece`` for the stretches that no line joins."""
        parts = [
            curve.assign(**self.label(s, name), piece=pieces(curve[x]))
            for s, name, curve in zip(self.settings, self.names, curves, strict=True)
            if len(curve)
        ]
        columns = [x, "value", "low", "high", "piece", *self.label(self.settings[0], "")]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def ends(self, ends: Sequence[tuple[RunFacts, float]], x: str) -> pd.DataFrame:
        """A row for each run that diverged, with the point at which it did."""
        homes = {
            id(run): self.label(s, name) for s, name in zip(self.settings, self.names, strict=True) for run in s.runs
        }
        rows = [{**homes[id(run)], x: at, "run": run.name} for run, at in ends if id(run) in homes]
        return pd.DataFrame(rows, columns=[x, *self.label(self.settings[0], "")])

    def subtitle(self, *, geometric: bool, one: str) -> list[str]:
        """What a line and its band are: ``one`` says it of a line that is a single run's."""
        mean = "geometric mean" if geometric else "mean"
        told = [f"line: {mean} over seeds; band: lowest to highest of all seeds" if self.several else one]
        if self.left_out:
            told.append(f"{counted(self.left_out, 'peak rate')} in between not drawn")
        return told


def on_axis(frame: pd.DataFrame, limits: Limits) -> pd.DataFrame:
    """The curves with ``line_at``, ``bottom`` and ``top``: where value, lowest and highest are drawn on the axis."""
    places = {"line_at": "value", "bottom": "low", "top": "high"}
    return frame.assign(**{name: limits.drawn(frame[column]) for name, column in places.items()})


def banded(frame: pd.DataFrame, x: Any, y: dict[str, Any], apart: dict[str, Any], tips: list[Any]) -> list[Any]:
    """The lines of one plot with their bands, of a frame that `on_axis` made.

    Args:
        frame: the curves.
        x: the axis along which they run.
        y: title, scale and axis of the other one.
        apart: what tells the lines apart.
        tips: tooltips of the lines.
    """
    base = alt.Chart(inline(frame)).encode(x=x, detail=["line:N", "piece:N"])
    return [
        base.mark_area(opacity=0.18, clip=True).encode(y=alt.Y("bottom:Q", **y), y2="top:Q", color=apart["color"]),
        base.mark_line(strokeWidth=1.6, clip=True).encode(y=alt.Y("line_at:Q", **y), **apart, tooltip=tips),
    ]


def tooltips(named: Named, what: str) -> list[alt.Tooltip]:
    """What a line tells of one of its points. ``what``: the name of its value."""
    figures = [("value", what), ("low", "lowest"), ("high", "highest")]
    return [
        alt.Tooltip("line:N", title=named.title),
        alt.Tooltip("step:Q", format=","),
        *(alt.Tooltip(f"{column}:Q", title=title, format=".4~g") for column, title in figures),
    ]


def _by_size(rate: float | None) -> tuple[bool, float]:
    return (rate is None, rate or 0.0)


def _name(setting: Setting, *, with_rate: bool) -> str:
    return f"{setting.label}, peak {setting.rate:.12g}" if with_rate and setting.rate is not None else setting.label


def arranged(named: Named, frame: pd.DataFrame, ends: pd.DataFrame, draw: Draw, heading: Any) -> Any:
    """One plot of all lines, or a panel for each peak rate.

    Args:
        named: the lines.
        frame: their rows, by `Named.frame`.
        ends: where runs diverged, by `Named.ends`.
        draw: draws rows and ends into a plot of a width and with these encodings for colour and dashes.
        heading: the chart's title.
    """
    encodings = apart(named.names, [s.optimizer for s in named.settings], named.settings, named.title)
    if named.rates is None:
        return draw(frame, ends, theme.WIDTH, encodings).properties(title=heading)
    columns = min(COLUMNS, len(named.rates))
    width = (theme.WIDTH - (columns - 1) * _BETWEEN) / columns
    panels = []
    for rate in named.rates:
        rows, over = (part[part["rate"].isna() if rate is None else part["rate"] == rate] for part in (frame, ends))
        title = "peak rate unknown" if rate is None else f"peak rate {rate:.12g}"
        panels.append(draw(rows, over, width, encodings).properties(title=theme.panel_title(title)))
    chart = alt.concat(*panels, columns=columns, spacing=_BETWEEN, title=heading)
    return chart.resolve_scale(color="shared", strokeDash="shared")


def crosses(ends: pd.DataFrame, x: alt.X, place: float, colour: Any, tips: Sequence[Any]) -> list[alt.Chart]:
    """A cross where each run diverged, at a height in pixels; none where no run did."""
    if not len(ends):
        return []
    mark = alt.Chart(inline(ends)).mark_point(shape="cross", angle=45, filled=True, size=110, opacity=1)
    return [mark.encode(x=x, y=alt.value(place), color=colour, tooltip=list(tips))]
