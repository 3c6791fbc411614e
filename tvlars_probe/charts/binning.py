"""Fewer rows, with the envelope kept: a spike of one step in a million is still to be seen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
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

MOST_BARS = 40
"""Layers whose bars and names can be told apart in one chart."""

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


def thinned(curves: Sequence[pd.DataFrame], column: str, most: int = MOST_ROWS) -> list[pd.DataFrame]:
    """The curves of one chart, together in at most so many rows.

    Each has the same share. One that is longer keeps its first and last row, and between them the rows with the
    lowest and the highest value of ``column`` in each bin. Beyond ``most`` curves the last ones are left out.
    """
    share = max(most // max(len(curves), 1), 1)
    return [curve if len(curve) <= share else _thinner(curve, column, share) for curve in curves[:most]]


def _thinner(curve: pd.DataFrame, column: str, most: int) -> pd.DataFrame:
    last = len(curve) - 1
    bins = (most - 2) // 2
    kept = {last} if most == 1 else {0, last}
    if bins > 0:
        kept |= {*extremes(curve[column].to_numpy(float), edges(len(curve), bins)).tolist()}
    return curve.iloc[sorted(kept)]


def envelope(steps: NDArray[np.int64], values: NDArray[Any], bins: int) -> pd.DataFrame:
    """``step``, ``low``, ``middle`` (median), ``high`` of each bin, and ``high_step``, where it is highest."""
    cuts = edges(len(steps), bins)
    rows = []
    for first, last in itertools.pairwise(cuts):
        piece = values[first:last].astype(np.float64)
        told = piece[~np.isnan(piece)]
        if len(told):
            top = int(np.nanargmax(piece))
            rows.append((int(steps[first]), told.min(), float(np.median(told)), piece[top], int(steps[first + top])))
    return pd.DataFrame(rows, columns=["step", "low", "middle", "high", "high_step"])


def coarser(binned: pd.DataFrame, bins: int) -> pd.DataFrame:
    """An `envelope` in at most so many bins: still its lowest and highest values, and the median of its medians."""
    if len(binned) <= bins:
        return binned
    cuts = edges(len(binned), bins)
    group = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    how = dict.fromkeys(binned.columns, "first") | {"low": "min", "middle": "median", "high": "max"}
    joined = binned.groupby(group).agg(how)
    high = binned["high"].to_numpy()
    tops = [first + int(high[first:last].argmax()) for first, last in itertools.pairwise(cuts)]
    return joined.assign(high_step=binned["high_step"].to_numpy()[tops]).reset_index(drop=True)


@dataclass(frozen=True)
class Cells:
    """A heat map's cells.

    Attributes:
        shown: ``parameter``, ``first`` and ``end`` step (exclusive), ``value``, and the ``low`` and ``high`` of its bin
            of steps and group of layers.
        unshown: ``parameter``, ``first`` and ``end`` of the bins in which a value is infinite or NaN.
        order: labels of the groups from top to bottom.
        groups: what stands behind the labels of groups of several layers.
    """

    shown: pd.DataFrame
    unshown: pd.DataFrame
    order: list[str]
    groups: dict[str, list[str]]


def cells(steps: NDArray[np.int64], parameters: Sequence[str], values: Matrix) -> Cells:
    """A heat map's cells: per bin of steps and group of layers the value furthest from the layers' median.

    The distance is between logarithms. A bin that reaches far to both sides is cut in two, so that its lowest and its
    highest value are both to be seen: the bins that reach furthest first, as far as there is room.
    """
    groups = edges(len(parameters), MOST_LAYERS)
    count = max(len(groups) - 1, 1)
    cuts = edges(len(steps), min(MOST_BINS, MOST_CELLS * 4 // 5 // count))  # the rest is room for halves
    ends = np.append(steps[1:], steps[-1] + 1) if len(steps) else steps
    frames, members, order = [], {}, []
    for left, right in itertools.pairwise(groups):
        name = parameters[left] if right - left == 1 else f"{parameters[left]} … {parameters[right - 1]}"
        block = _block(values[:, left:right], cuts)
        if block is None:
            continue
        order.append(name)
        if right - left > 1:
            members[name] = list(parameters[left:right])
        frames.append(block.assign(parameter=name, first=steps[cuts[:-1]], end=ends[cuts[1:] - 1]))
    if not frames:
        none = pd.DataFrame(columns=["parameter", "first", "end", "value", "low", "high"])
        return Cells(none, none[["parameter", "first", "end"]], order, members)
    frame = pd.concat(frames, ignore_index=True)
    unshown = frame.loc[frame["bad"], ["parameter", "first", "end"]]
    told = frame.dropna(subset="value")
    room = MOST_CELLS - len(told)
    wide = told["reach"].where(told["reach"] > np.log10(_FAR)).nlargest(min(room, len(told))).dropna().index
    columns = ["parameter", "first", "end", "value", "low", "high"]
    return Cells(_in_two(told, wide)[columns], unshown.reset_index(drop=True), order, members)


def unshowable(values: Matrix) -> NDArray[np.bool_]:
    """Which values are infinite, or NaN although something of their tensor is on record."""
    return ~np.isfinite(values) & ~np.isnan(values).all(axis=0)


_FAR = 2.0
"""Times the median, or part of it, beyond which both ends of a bin are worth a cell of their own."""


def _block(values: Matrix, cuts: NDArray[np.int64]) -> pd.DataFrame | None:
    """The bins of a group of layers; None where there is nothing of it."""
    bad = unshowable(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.isfinite(values) & (values > 0), np.log10(values.astype(np.float64)), np.nan)
    if not bad.any() and np.isnan(logs).all():
        return None
    lowest, highest = np.fmin.reduce(logs, axis=1), np.fmax.reduce(logs, axis=1)
    low, high = np.fmin.reduceat(lowest, cuts[:-1]), np.fmax.reduceat(highest, cuts[:-1])
    middle = np.median(logs[~np.isnan(logs)]) if (~np.isnan(logs)).any() else np.nan
    up, down = high - middle, middle - low
    reach = np.minimum(up, down)
    falls = np.zeros(len(reach), bool)
    for i in np.flatnonzero(reach > np.log10(_FAR)):
        within = slice(cuts[i], cuts[i + 1])
        falls[i] = np.nanargmax(highest[within]) <= np.nanargmin(lowest[within])
    return pd.DataFrame(
        {
            "value": 10.0 ** np.where(up >= down, high, low),
            "low": 10.0**low,
            "high": 10.0**high,
            "reach": reach,
            "falls": falls,
            "bad": np.logical_or.reduceat(bad.any(axis=1), cuts[:-1]),
        }
    )


def _in_two(frame: pd.DataFrame, wide: pd.Index[Any]) -> pd.DataFrame:
    """The cells, those named by ``wide`` as two halves: one with its highest value, one with its lowest."""
    whole, halves = frame.drop(wide), frame.loc[wide]
    middle = halves["first"] + (halves["end"] - halves["first"]) / 2
    early = np.where(halves["falls"], halves["high"], halves["low"])
    late = np.where(halves["falls"], halves["low"], halves["high"])
    parts = [whole, halves.assign(end=middle, value=early), halves.assign(first=middle, value=late)]
    return pd.concat([part for part in parts if len(part)]).sort_index(kind="stable").reset_index(drop=True)


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
