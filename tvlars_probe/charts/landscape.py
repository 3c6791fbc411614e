"""The loss along a line, and over a plane around a minimum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, MOST_ROWS, inline
from tvlars_probe.charts.limits import Limits, edge_marks, edge_words
from tvlars_probe.charts.names import pixels, shortened
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from tvlars_probe.analyses.landscape import Landscape

_HEIGHT, _SIDE = 260, 420
"""Height of a line's plot, and of a plane's."""

_TIPS = [
    alt.Tooltip("alpha:Q", title="α", format=".3~g"),
    alt.Tooltip("loss:Q", format=".4~g"),
    alt.Tooltip("acc1:Q", title="accuracy (%)", format=".2f"),
]


def landscape_line(result: Landscape) -> alt.LayerChart | alt.FacetChart:
    """The loss along one direction, or between the ends of two runs.

    Crosses at the top mark points at which it isn't finite, triangles those beyond the axis.

    Raises:
        NothingToShowError: the loss is finite at no point.
    """
    rows = result.line.head(MOST_ROWS)
    limits = _limits(result, rows)
    rows = rows.assign(drawn=limits.drawn(rows["loss"]))
    lost, finite = rows[~np.isfinite(rows["loss"])], rows[np.isfinite(rows["loss"])]
    above, below = finite[finite["loss"] > limits.high], finite[finite["loss"] < limits.low]
    # Points that are not finite stay among the rows: the line ends there, and α's axis holds them.
    base = alt.Chart(inline(rows.assign(drawn=rows["drawn"].where(np.isfinite(rows["loss"])))))
    x = alt.X("alpha:Q", title=_axis(result))
    colour = theme.OPTIMIZER_COLOURS.get(str(result.facts.optimizer), theme.OTHER_COLOUR)
    domain = [limits.low, limits.high]
    y = alt.Y(
        "drawn:Q",
        title="mean loss",
        scale=alt.Scale(type="log" if limits.is_log else "linear", domain=domain, nice=True),
        axis=theme.log_axis(domain) if limits.is_log else alt.Axis(),
    )
    line = base.mark_line(color=colour, strokeWidth=1.8, clip=True).encode(x=x, y=y)
    points = base.mark_point(color=colour, filled=True, size=26, clip=True).encode(x=x, y=y, tooltip=_TIPS)
    layers = [line, points, *edge_marks(above, below, _HEIGHT, x, alt.value(colour), _TIPS)]
    words = edge_words(above, below, is_log=limits.is_log)
    if len(lost):
        cross = alt.Chart(inline(lost)).mark_point(shape="cross", angle=45, filled=True, size=90, opacity=1)
        layers.append(cross.encode(x=x, y=alt.value(0), color=alt.value(colour), tooltip=_TIPS))
        words.append("✕ not finite")
    return alt.layer(*layers).properties(
        width=theme.WIDTH,
        height=_HEIGHT,
        title=theme.title(result.verdict.reason, "; ".join([_subtitle(result), *words])),
    )


def landscape_map(result: Landscape) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    """The loss over the plane of two filter-normalised directions. Beyond `MOST_CELLS` points the plane is thinned.

    Raises:
        NothingToShowError: the loss is finite at no point.
    """
    rows, note = _fewer(result.plane)
    limits = _limits(result, rows)
    rows = rows.join(_cell_edges(rows["alpha"], "left", "right")).join(_cell_edges(rows["beta"], "bottom", "top"))
    x = alt.X("left:Q", title="α: first direction, filter-normalised", scale=alt.Scale(nice=False, zero=False))
    y = alt.Y("bottom:Q", title="β: second direction", scale=alt.Scale(nice=False, zero=False))
    domain = [limits.low, limits.high]
    colours = alt.Scale(
        type="log" if limits.is_log else "linear", scheme=theme.SEQUENTIAL, reverse=True, domain=domain, clamp=True
    )
    lost = rows[~np.isfinite(rows["loss"])]
    finite = rows[np.isfinite(rows["loss"])]
    finite = finite.assign(drawn=limits.drawn(finite["loss"]))
    legend = alt.Legend(gradientLength=240, format=theme.log_format(domain))
    heading = theme.title(result.plane_reason, _subtitle(result) + note + ("; red: not finite" if len(lost) else ""))
    shown = (
        alt.Chart(inline(finite, MOST_CELLS))
        .mark_rect(strokeWidth=0)
        .encode(
            x=x,
            x2="right:Q",
            y=y,
            y2="top:Q",
            color=alt.Color("drawn:Q", title="mean loss", scale=colours, legend=legend),
            tooltip=[_TIPS[0], alt.Tooltip("beta:Q", title="β", format=".3~g"), *_TIPS[1:]],
        )
    )
    if not len(lost):
        return shown.properties(width=_SIDE, height=_SIDE, title=heading)
    marks = alt.Chart(inline(lost, MOST_CELLS)).mark_rect(strokeWidth=0, color=theme.BAD_COLOUR)
    return alt.layer(shown, marks.encode(x=x, x2="right:Q", y=y, y2="top:Q")).properties(
        width=_SIDE, height=_SIDE, title=heading
    )


def _limits(result: Landscape, rows: pd.DataFrame) -> Limits:
    """The limits of the loss: logarithmic, unless a loss is negative.

    Raises:
        NothingToShowError: no loss is finite.
    """
    is_log = bool((rows["loss"] > 0).any()) and not (rows["loss"] < 0).any()
    limits = Limits.of([rows["loss"]], is_log=is_log)
    if limits is None:
        raise NothingToShowError(
            f"the loss around {result.facts.name} is finite at no point of the last slice: tvlars-probe landscape "
            f"--checkpoint takes an earlier checkpoint"
        )
    return limits


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
    ends = shortened((result.facts.name, result.run2), theme.NAME_ROOM, pixels)
    return f"α: 0 is {ends[result.facts.name]}, 1 is {ends[result.run2]}"


def _subtitle(result: Landscape) -> str:
    where = result.facts.name if result.run2 is None else f"{result.facts.name} to {result.run2}"
    return f"{where}; loss on {result.split} data, BatchNorm {result.bn_mode}"
