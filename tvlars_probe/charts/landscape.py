"""The loss along a line, and over a plane around a minimum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

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
    """The loss over the plane of two filter-normalised directions. Beyond `MOST_CELLS` points the plane is thinned."""
    rows, note = _fewer(result.plane)
    rows = rows.join(_cell_edges(rows["alpha"], "left", "right")).join(_cell_edges(rows["beta"], "bottom", "top"))
    return (
        alt.Chart(inline(rows, MOST_CELLS), title=theme.title(result.plane_reason, _subtitle(result) + note))
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


def _fewer(plane: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Thin the plane to as many points as a chart holds.

    Returns:
        its rows, and what the subtitle says of it: nothing where all points stay.
    """
    axes = [np.unique(plane[name]) for name in ("alpha", "beta")]
    stride = 1
    # -(-a // b) rounds a / b up.
    while math.prod(-(-len(axis) // stride) for axis in axes) > MOST_CELLS:
        stride += 1
    if stride == 1:
        return plane, ""
    # The offset keeps the centre of the plane, where the checkpoint lies.
    kept = [axis[int(np.abs(axis).argmin()) % stride :: stride] for axis in axes]
    rows = plane[plane["alpha"].isin(kept[0]) & plane["beta"].isin(kept[1])]
    every = "2nd" if stride == 2 else "3rd" if stride == 3 else f"{stride}th"
    return rows, f"; every {every} of {len(axes[0]):,} × {len(axes[1]):,} points"


def _cell_edges(points: pd.Series[float], before: str, after: str) -> pd.DataFrame:
    """Where each point's cell begins and ends: midway to its neighbours on the grid, which may be uneven.

    Args:
        points: one coordinate of each point.
        before: name of the column where a cell begins.
        after: name of the column where it ends.
    """
    grid = np.unique(points)
    if len(grid) > 1:
        # The outermost cells lie evenly about their points: 2·x − m is the mirror image of m in x.
        middle = (grid[1:] + grid[:-1]) / 2
        edges = np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])
    else:
        edges = np.concatenate([grid - 0.5, grid[-1:] + 0.5])
    place = np.searchsorted(grid, points)  # exact: every point is on the grid
    return pd.DataFrame({before: edges[place], after: edges[place + 1]}, index=points.index)


def _axis(result: Landscape) -> str:
    """Label of α's axis: a direction has a length, a line between two runs has ends."""
    if result.run2 is None:
        return "α: distance along a filter-normalised direction"
    return f"α: 0 is {result.facts.name}, 1 is {result.run2}"


def _subtitle(result: Landscape) -> str:
    where = result.facts.name if result.run2 is None else f"{result.facts.name} to {result.run2}"
    return f"{where}; loss on {result.split} data, BatchNorm {result.bn_mode}"
