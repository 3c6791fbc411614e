"""Loss along a line and over a plane around a minimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, MOST_ROWS, inline

if TYPE_CHECKING:
    from tvlars_probe.analyses.landscape import Landscape


def landscape_line(result: Landscape) -> alt.LayerChart | alt.FacetChart:
    """The loss along one direction, or between the ends of two runs."""
    rows = result.line.head(MOST_ROWS)
    base = alt.Chart(inline(rows))
    tips = [
        alt.Tooltip("alpha:Q", title="α", format=".3~g"),
        alt.Tooltip("loss:Q", format=".4~g"),
        alt.Tooltip("acc1:Q", title="accuracy (%)", format=".2f"),
    ]
    x = alt.X("alpha:Q", title=_axis(result))
    colour = theme.OPTIMIZER_COLOURS.get(str(result.facts.optimizer), theme.OTHER_COLOUR)
    y = alt.Y("loss:Q", title="mean loss", scale=alt.Scale(type="log"), axis=theme.log_axis(rows["loss"]))
    line = base.mark_line(color=colour, strokeWidth=1.8).encode(x=x, y=y)
    points = base.mark_point(color=colour, filled=True, size=26).encode(x=x, y=y, tooltip=tips)
    return alt.layer(line, points).properties(
        width=theme.WIDTH, height=260, title=theme.title(result.verdict.reason, _subtitle(result))
    )


def landscape_map(result: Landscape) -> alt.Chart:
    """The loss over the plane of two filter-normalised directions."""
    rows = result.plane
    step_a, step_b = result.spacing
    rows = rows.assign(
        left=rows["alpha"] - step_a / 2,
        right=rows["alpha"] + step_a / 2,
        bottom=rows["beta"] - step_b / 2,
        top=rows["beta"] + step_b / 2,
    )
    return (
        alt.Chart(inline(rows, MOST_CELLS), title=theme.title(result.plane_reason, _subtitle(result)))
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X("left:Q", title="α: first direction, filter-normalised", scale=alt.Scale(nice=False, zero=False)),
            x2="right:Q",
            y=alt.Y("bottom:Q", title="β: second direction", scale=alt.Scale(nice=False, zero=False)),
            y2="top:Q",
            color=alt.Color(
                "loss:Q", title="mean loss", scale=alt.Scale(type="log", scheme=theme.SEQUENTIAL, reverse=True)
            ),
            tooltip=[
                alt.Tooltip("alpha:Q", title="α", format=".3~g"),
                alt.Tooltip("beta:Q", title="β", format=".3~g"),
                alt.Tooltip("loss:Q", format=".4~g"),
                alt.Tooltip("acc1:Q", title="accuracy (%)", format=".2f"),
            ],
        )
        .properties(width=420, height=420)
    )


def _axis(result: Landscape) -> str:
    if result.run2 is None:
        return "α: distance along a filter-normalised direction"
    return f"α: 0 is {result.facts.name}, 1 is {result.run2}"


def _subtitle(result: Landscape) -> str:
    where = result.facts.name if result.run2 is None else f"{result.facts.name} to {result.run2}"
    return f"{where}; loss on {result.split} data, BatchNorm {result.bn_mode}"
