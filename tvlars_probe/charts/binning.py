"""Fewer rows, with the envelope kept: a spike of one step in a million is still seen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Matrix = NDArray[np.floating[Any]]

MOST_ROWS = 5_000
"""Most rows that a chart holds."""

MOST_CELLS = 40_000
"""Most cells that a heat map holds."""

MOST_LAYERS = 200
"""Most layers that a chart shows one by one."""

MOST_BARS = 40
"""Most layers whose bars and names can be told apart in one chart."""

GAP = 4.0
"""A step this many times as long as its neighbours is a gap in a curve."""

MOST_BINS = 320
"""Most bins that a heat map's width can show."""


def edges(count: int, bins: int) -> NDArray[np.int64]:
    """Cut ``count`` rows into at most ``bins`` bins of nearly equal length.

    Returns:
        the edges, ascending from 0 to ``count``: bin k holds the rows from ``edges[k]`` to before ``edges[k + 1]``.
    """
    # Never more bins than rows: `reduceat` in `_block` would give an empty bin its neighbour's value.
    return np.unique(np.linspace(0, count, min(count, max(bins, 1)) + 1).astype(np.int64))


def extremes(values: NDArray[Any], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the lowest and the highest value of each bin, ascending. NaN counts as neither."""
    kept: list[int] = []
    for first, last in itertools.pairwise(cuts):
        piece = values[first:last].astype(np.float64)
        if np.isnan(piece).all():  # `nanargmin` raises there
            continue
        # A set: both indices are one where all values of a bin are equal.
        kept += sorted({int(first + np.nanargmin(piece)), int(first + np.nanargmax(piece))})
    return np.array(kept, np.int64)


def thinned(curves: Sequence[pd.DataFrame], column: str, most: int = MOST_ROWS) -> list[pd.DataFrame]:
    """Thin the curves of one chart to ``most`` rows together.

    Each curve has the same share of the rows. A longer curve keeps its first and its last row, and in each bin the rows
    with the lowest and the highest ``column``. Beyond ``most`` curves the last ones are left out.
    """
    share = max(most // max(len(curves), 1), 1)
    return [curve if len(curve) <= share else _thinner(curve, column, share) for curve in curves[:most]]


def _thinner(curve: pd.DataFrame, column: str, most: int) -> pd.DataFrame:
    last = len(curve) - 1
    bins = (most - 2) // 2  # a bin keeps two rows, and the ends are two
    # With room for one row it is the last: titles say where a curve ends.
    kept = {last} if most == 1 else {0, last}
    if bins > 0:
        kept |= {*extremes(curve[column].to_numpy(float), edges(len(curve), bins)).tolist()}
    return curve.iloc[sorted(kept)]


def pieces(steps: ArrayLike) -> NDArray[np.int64]:
    """Number the stretches of a curve: a new one begins behind a gap, which no line may cross.

    A gap is more than `GAP` times as long as the steps around it, of which the median of two on either side counts.

    Args:
        steps: (T,), ascending.
    """
    steps = np.asarray(steps, np.float64)
    long = np.diff(steps)
    if len(long) < 2:
        return np.zeros(len(steps), np.int64)
    around = np.full((4, len(long)), np.nan)
    for row, shift in zip(around, (-2, -1, 1, 2), strict=True):
        ahead, behind = max(shift, 0), max(-shift, 0)
        row[behind : len(long) - ahead] = long[ahead : len(long) - behind]
    return np.append(0, np.cumsum(long > GAP * np.nanmedian(around, axis=0)))


def envelope(steps: NDArray[np.int64], values: NDArray[Any], bins: int) -> pd.DataFrame:
    """Bin a curve; NaN is passed over.

    Returns:
        a row per bin that holds a value: its first ``step``, ``low``, ``middle`` (the median), ``high``, and
        ``high_step``, the step of the highest value.
    """
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
    """An `envelope` in at most ``bins`` bins: ``low`` and ``high`` stay exact, ``middle`` is a median of medians."""
    if len(binned) <= bins:
        return binned
    cuts = edges(len(binned), bins)
    group = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    # "first": a bin's ``step`` is its first one, and a run's ``start`` is the same in all its rows.
    how = dict.fromkeys(binned.columns, "first") | {"low": "min", "middle": "median", "high": "max"}
    joined = binned.groupby(group).agg(how)
    # The step of a bin's highest value is that of the finer bin with the highest ``high``.
    high = binned["high"].to_numpy()
    tops = [first + int(high[first:last].argmax()) for first, last in itertools.pairwise(cuts)]
    return joined.assign(high_step=binned["high_step"].to_numpy()[tops]).reset_index(drop=True)


@dataclass(frozen=True)
class Cells:
    """A heat map's cells.

    Attributes:
        shown: a row per cell: ``parameter`` (the label of a layer or group), ``first`` and ``end`` step (exclusive),
            ``value``, and ``low`` and ``high`` of the bin that it is of.
        unshown: ``parameter``, ``first`` and ``end`` of each bin in which a value is infinite or NaN.
        zeros: the same of each bin in which all values are zero.
        order: labels from top to bottom.
        groups: for each label of several layers, their names.
    """

    shown: pd.DataFrame
    unshown: pd.DataFrame
    zeros: pd.DataFrame
    order: list[str]
    groups: dict[str, list[str]]


def cells(steps: NDArray[np.int64], parameters: Sequence[str], values: Matrix) -> Cells:
    """Arrange a heat map: bins of steps across, layers, or groups of neighbouring layers, down.

    A cell shows the value of its bin that lies furthest from the group's median, measured between logarithms. A bin
    that reaches far to both sides of it is cut into two cells, so that its lowest and its highest value are both seen.
    Where there is no room to cut all of these, those that reach furthest are cut. No cell reaches across a gap in the
    steps.

    Args:
        steps: (T,), ascending.
        parameters: (P,), the layers.
        values: (T, P).
    """
    groups = edges(len(parameters), MOST_LAYERS)
    # A fifth of the cells is room for bins cut in two.
    cuts, ends = _bins(steps, MOST_CELLS * 4 // 5 // max(len(groups) - 1, 1))
    frames, members, order = [], {}, []
    for left, right in itertools.pairwise(groups):
        name = parameters[left] if right - left == 1 else f"{parameters[left]} … {parameters[right - 1]}"
        block = _block(values[:, left:right], cuts)
        if block is None:
            continue
        order.append(name)
        if right - left > 1:
            members[name] = list(parameters[left:right])
        frames.append(block.assign(parameter=name, first=steps[cuts[:-1]], end=ends))
    place, columns = ["parameter", "first", "end"], ["parameter", "first", "end", "value", "low", "high"]
    if not frames:
        none = pd.DataFrame(columns=columns)
        return Cells(none, none[place], none[place], order, members)
    frame = pd.concat(frames, ignore_index=True)
    marked = [frame.loc[frame[flag], place].reset_index(drop=True) for flag in ("bad", "zero")]
    told = frame.dropna(subset="value")
    # A bin cut in two takes one cell more. `nlargest` may fill up with NaN, which `where` left for the others.
    room = MOST_CELLS - len(told)
    wide = told["reach"].where(told["reach"] > np.log10(_FAR)).nlargest(min(room, len(told))).dropna().index
    return Cells(_in_two(told, wide)[columns], marked[0], marked[1], order, members)


def _bins(steps: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut a heat map's steps into at most ``most`` bins. None of them spans a gap, unless there are too many gaps.

    Returns:
        the edges, as `edges` gives them, and the step at which each bin ends.
    """
    if not len(steps):
        return edges(0, most), steps
    # A cell reaches to the next recorded step: with --record-every 10 it is ten steps wide.
    ends = np.append(steps[1:], steps[-1] + 1)
    gaps = np.flatnonzero(np.diff(pieces(steps)))
    # Before a gap it is as wide as the one before; one by itself between two gaps is a step wide.
    usual = np.diff(steps, prepend=steps[0])[gaps]
    width = np.where(np.isin(gaps - 1, gaps) | (gaps == 0), 1, usual)
    longest = np.argsort(-(ends[gaps] - steps[gaps]), kind="stable")[: most // 4]
    gaps, width = gaps[longest], width[longest]
    ends[gaps] = steps[gaps] + width
    cuts = np.union1d(edges(len(steps), min(MOST_BINS, most - len(gaps))), gaps + 1)
    return cuts, ends[cuts[1:] - 1]


def unshowable(values: Matrix) -> NDArray[np.bool_]:
    """Which values a heat map marks: infinite ones, and NaN where the layer has other values.

    A layer that is NaN throughout has no such quantity, which is no fault.

    Args:
        values: (T, P).
    """
    return ~np.isfinite(values) & ~np.isnan(values).all(axis=0)


_FAR = 2.0
"""A bin is cut in two where it reaches from below the median over this to above the median times this."""


def _block(values: Matrix, cuts: NDArray[np.int64]) -> pd.DataFrame | None:
    """The bins of one group of layers; None where there is nothing to show or to mark.

    Args:
        values: (T, layers of the group).
        cuts: edges of the bins.

    Returns:
        a row per bin: ``value``, ``low``, ``high``, ``reach`` (decades from the median to the nearer end, negative
        where both ends lie on one side), ``falls`` (whether the highest value comes before the lowest), ``bad``
        (whether a value is marked), and ``zero`` (whether all values are).
    """
    bad = unshowable(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.isfinite(values) & (values > 0), np.log10(values.astype(np.float64)), np.nan)
    zero = (values == 0).any(axis=1)
    if not bad.any() and not zero.any() and np.isnan(logs).all():
        return None
    # fmin and fmax pass over NaN, without the warning that nanmin has for NaN alone.
    lowest, highest = np.fmin.reduce(logs, axis=1), np.fmax.reduce(logs, axis=1)
    low, high = np.fmin.reduceat(lowest, cuts[:-1]), np.fmax.reduceat(highest, cuts[:-1])
    # The median is over all steps: a cell stands out from the whole history of its layers.
    middle = np.median(logs[~np.isnan(logs)]) if (~np.isnan(logs)).any() else np.nan
    up, down = high - middle, middle - low
    reach = np.minimum(up, down)
    # The order of both ends is asked only of the bins that may be cut.
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
            # Zero has no logarithm.
            "zero": np.isnan(high) & np.logical_or.reduceat(zero, cuts[:-1]),
        }
    )


def _in_two(frame: pd.DataFrame, wide: pd.Index[Any]) -> pd.DataFrame:
    """The cells, with those in ``wide`` cut into two halves, one for the lowest value and one for the highest.

    The value that comes first in the bin has the first half.
    """
    whole, halves = frame.drop(wide), frame.loc[wide]
    middle = halves["first"] + (halves["end"] - halves["first"]) / 2
    early = np.where(halves["falls"], halves["high"], halves["low"])
    late = np.where(halves["falls"], halves["low"], halves["high"])
    parts = [whole, halves.assign(end=middle, value=early), halves.assign(first=middle, value=late)]
    # Halves keep their bin's index: a stable sort puts them where it stood, the early one first.
    # An empty frame has no data types to join; where all are empty, any of them will do.
    return pd.concat([part for part in parts if len(part)] or [whole]).sort_index(kind="stable").reset_index(drop=True)


class InlineRows(alt.InlineData):
    """A chart's own data, which `altair` doesn't validate row by row when it is made."""

    # Of a chart of many layers, that validation takes longer than anything else.
    _class_is_valid_at_instantiation = False


def inline(frame: pd.DataFrame, most: int = MOST_ROWS) -> InlineRows:
    """Rows as a chart's own data. Numbers are rounded to five digits; NaN and infinities become null.

    Raises:
        ValueError: there are more rows than a chart may hold.
    """
    if len(frame) > most:
        raise ValueError(f"a chart of {len(frame)} rows (at most {most}): bin them first")
    values = [{str(name): _short(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return InlineRows(values=values)


def _short(value: Any) -> Any:
    # Before int: a bool is one.
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        # Five digits are finer than a pixel; JSON has no NaN.
        return float(f"{value:.5g}") if np.isfinite(value) else None
    if isinstance(value, int | np.integer):
        return int(value)
    return None if value is None or value is pd.NA else str(value)
