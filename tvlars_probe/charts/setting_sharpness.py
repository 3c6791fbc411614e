"""Sharpness of many runs: a line per setting, of one operator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import altair as alt

from tvlars_probe.analyses.settings import over_seeds, settings_of
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, inline, thinned
from tvlars_probe.charts.limits import Limits, edge_marks, edge_words
from tvlars_probe.charts.lines import PANEL_HEIGHT, PANEL_TICKS, Named, arranged, banded, crosses, on_axis, tooltips
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tvlars_probe.analyses.minimizer import Minimizer

_HEIGHT = 240
"""Height of a plot by itself, in units of the chart."""


def sharpness_of_settings(results: Sequence[Minimizer], operator: str, label: str, seen: str, of: Sequence[str]) -> Any:
    """Sharpness by step: the geometric mean over each setting's seeds, and the lowest to the highest seed.

    Beyond `lines.MOST_LINES` lines there is a panel for each peak rate. A cross at the top marks where a run diverged.

    Args:
        results: of runs that were measured alike.
        operator: the operator whose sharpness is drawn.
        label: title of its axis.
        seen: title of the chart.
        of: parts of its subtitle.

    Raises:
        NothingToShowError: no sharpness is a number above zero.
    """
    named = Named.of(settings_of([r.facts for r in results])[:MOST_ROWS])
    own = [r.curves.loc[r.curves["operator"] == operator, ["step", "value"]].sort_values("step") for r in results]
    curves = [over_seeds(s, [own[p] for p in s.places], "step", geometric=True) for s in named.settings]
    gone = [s.diverged for s in named.settings]
    limits = Limits.of(
        [c["value"] for c, is_gone in zip(curves, gone, strict=True) if not is_gone],
        [c["value"] for c, is_gone in zip(curves, gone, strict=True) if is_gone],
    )
    if limits is None:
        raise NothingToShowError("no sharpness on record is a number above zero")
    frame = named.frame([*(few := thinned(curves, "value")), *(c.head(0) for c in curves[len(few) :])], "step")
    frame = on_axis(frame, limits)
    ends = named.ends([(r.facts, r.facts.bad_loss_step) for r in results if r.facts.bad_loss_step is not None], "step")
    beyond = (frame[frame["value"] > limits.high], frame[frame["value"] < limits.low])
    words = [*named.subtitle(geometric=True, one=""), *(["✕ diverged"] if len(ends) else []), *edge_words(*beyond)]
    heading = theme.title(seen, "; ".join(text for text in (*of, *words) if text))
    steps = [*frame["step"], *ends["step"]]
    draw = partial(_plot, limits=limits, named=named, domain=[int(min(steps)), int(max(steps))], label=label)
    return arranged(named, frame, ends, draw, heading)


def _plot(
    frame: pd.DataFrame,
    ends: pd.DataFrame,
    width: float,
    apart: dict[str, Any],
    *,
    limits: Limits,
    named: Named,
    domain: list[int],
    label: str,
) -> Any:
    """The lines of one plot, with their bands and marks."""
    alone = named.rates is None
    height, ticks = (_HEIGHT, theme.MOST_TICKS) if alone else (PANEL_HEIGHT, PANEL_TICKS)
    x = theme.step_axis("step:Q", alt.Scale(nice=False, domain=domain))
    scale = alt.Scale(type="log", domain=[limits.low, limits.high], nice=True)
    y: dict[str, Any] = {"title": label, "scale": scale, "axis": theme.log_axis([limits.low, limits.high], ticks)}
    tips = [*tooltips(named, "sharpness"), alt.Tooltip("seeds:Q")]
    # Sharpness is measured in few steps: its points are seen, too.
    points = alt.Chart(inline(frame)).mark_point(filled=True, size=20, clip=True)
    layers = [
        *banded(frame, x, y, apart, tips),
        points.encode(x=x, y=alt.Y("line_at:Q", **y), color=apart["color"], tooltip=tips),
    ]
    above, below = frame[frame["value"] > limits.high], frame[frame["value"] < limits.low]
    layers += edge_marks(above, below, height, x, apart["color"], tips)
    layers += crosses(ends, x, 0, apart["color"], [alt.Tooltip("run:N"), alt.Tooltip("step:Q", title="diverged at")])
    return alt.layer(*layers).properties(width=width, height=height)
