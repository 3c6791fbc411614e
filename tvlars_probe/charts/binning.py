"""Fewer rows, with the envelope kept: a spike of one step in a million is still to be seen."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.floating[Any]]

MOST_ROWS = 5_000
"""Rows that a chart holds at most."""

MOST_CELLS = 40_000
"""Cells that a heat map holds at most."""

MOST_LAYERS = 200
"""Layers that a chart shows one by one."""

MOST_BINS = 320
"""Bins that a heat map's width can show."""


def edges(count: int, bins: int) -> NDArray[np.int64]:
    """Where ``count`` steps are cut into at most ``bins`` runs of nearly equal length."""
    return np.unique(np.linspace(0, count, min(count, max(bins, 1)) + 1).astype(np.int64))


def extremes(values: NDArray[Any], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the lowest and the highest value of each bin, ascending; NaN counts as neither."""
    kept: list[int] = []
    for first, last in itertools.pairwise(cuts):
        piece = values[first:last].astype(np.float64)
        if np.isnan(piece).all():
            continue
        kept += sorted({int(first + np.nanargmin(piece)), int(first + np.nanargmax(piece))})
    return np.array(kept, np.int64)


def envelope(steps: NDArray[np.int64], values: NDArray[Any], bins: int) -> pd.DataFrame:
    """``step``, ``low``, ``middle`` (median) and ``high`` of each bin."""
    cuts = edges(len(steps), bins)
    rows = []
    for first, last in itertools.pairwise(cuts):
        piece = values[first:last].astype(np.float64)
        piece = piece[~np.isnan(piece)]
        if len(piece):
            rows.append((int(steps[first]), piece.min(), float(np.median(piece)), piece.max()))
    return pd.DataFrame(rows, columns=["step", "low", "middle", "high"])


def coarser(binned: pd.DataFrame, bins: int) -> pd.DataFrame:
    """An `envelope` in at most so many bins: still its lowest and highest values, and the median of its medians."""
    if len(binned) <= bins:
        return binned
    cuts = edges(len(binned), bins)
    group = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    how = {"step": "first", "low": "min", "middle": "median", "high": "max"}
    return binned.groupby(group).agg(how).reset_index(drop=True)


def cells(steps: NDArray[np.int64], parameters: Sequence[str], values: Matrix) -> pd.DataFrame:
    """A heat map's cells: per bin of steps and group of layers the value furthest from the layers' median.

    The distance is between logarithms. Columns: ``parameter``, ``first`` and ``end`` step (exclusive), ``value``,
    ``low``, ``high``, ``order`` (of the layers).
    """
    groups = edges(len(parameters), MOST_LAYERS)
    cuts = edges(len(steps), min(MOST_BINS, MOST_CELLS // max(len(groups) - 1, 1)))
    ends = np.append(steps[1:], steps[-1] + 1) if len(steps) else steps
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.isfinite(values) & (values > 0), np.log10(values.astype(np.float64)), np.nan)
    frames = []
    for order, (left, right) in enumerate(itertools.pairwise(groups)):
        block = logs[:, left:right]
        if np.isnan(block).all():
            continue
        low = np.fmin.reduceat(np.fmin.reduce(block, axis=1), cuts[:-1])
        high = np.fmax.reduceat(np.fmax.reduce(block, axis=1), cuts[:-1])
        middle = np.nanmedian(block)
        value = np.where(high - middle >= middle - low, high, low)
        names = parameters[left] if right - left == 1 else f"{parameters[left]} … {parameters[right - 1]}"
        frames.append(
            pd.DataFrame(
                {
                    "parameter": names,
                    "first": steps[cuts[:-1]],
                    "end": ends[cuts[1:] - 1],
                    "value": 10.0**value,
                    "low": 10.0**low,
                    "high": 10.0**high,
                    "order": order,
                }
            )
        )
    columns = ["parameter", "first", "end", "value", "low", "high", "order"]
    return pd.concat(frames, ignore_index=True).dropna(subset="value") if frames else pd.DataFrame(columns=columns)


def inline(frame: pd.DataFrame, most: int = MOST_ROWS) -> alt.InlineData:
    """Rows as a chart's own data, rounded to five digits; NaN and infinities become null.

    Raises:
        ValueError: there are more rows than a chart may hold.
    """
    if len(frame) > most:
        raise ValueError(f"a chart of {len(frame)} rows (at most {most}): bin them first")
    values = [{str(name): _short(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return alt.InlineData(values=values)


def _short(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    if isinstance(value, int | np.integer):
        return int(value)
    return None if value is None or value is pd.NA else str(value)
