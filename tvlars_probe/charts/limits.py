"""Axes that no extreme value stretches, and marks at their edges for what has no place on them.

A run that diverges reaches 1e30 within a few steps. An axis up to there shows all other runs as one flat line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.charts.binning import inline, pieces
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence, Set, Sized

    from numpy.typing import ArrayLike, NDArray

FAR = 1e3
"""A value further beyond nine tenths of a curve than this factor has no place on a logarithmic axis."""

FAR_APART = 10.0
"""The same on a linear axis, in widths of the middle eight tenths."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Both ends of an axis.

    Attributes:
        low: lowest value with a place on it.
        high: highest value with a place on it.
        is_log: whether the axis is logarithmic.
    """

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, curves: Sequence[ArrayLike], aside: Sequence[ArrayLike] = (), *, is_log: bool = True) -> Limits | None:
        """The limits of an axis for some curves; None where no value has a place on it.

        Each curve reaches `FAR` beyond its values between the tenth and the ninetieth percentile (`FAR_APART` widths
        of these on a linear axis). The axis holds what any curve reaches, as far as there are values.

        Args:
            curves: the values of each curve.
            aside: those of curves that don't stretch the axis where there are others: of runs that diverged.
            is_log: whether the axis is logarithmic.
        """
        all_told = [found for found in (_told(curve, is_log=is_log) for curve in (*curves, *aside)) if len(found)]
        if not all_told:
            return None
        leading = [found for found in (_told(curve, is_log=is_log) for curve in curves) if len(found)] or all_told
        ends = [_reach(found, is_log=is_log) for found in leading]
        low = max(min(end for end, _ in ends), min(float(found[0]) for found in all_told))
        high = min(max(end for _, end in ends), max(float(found[-1]) for found in all_told))
        return cls(low, high, is_log)

    def within(self, values: ArrayLike) -> NDArray[np.bool_]:
        """Which values have a place on the axis; NaN has none."""
        told = np.asarray(values, float)
        return (told >= self.low) & (told <= self.high)

    def drawn(self, values: ArrayLike) -> NDArray[np.float64]:
        """The values as a clipped line shows them: it leaves the plot at the edge beyond which they lie."""
        if self.is_log:
            return np.clip(np.asarray(values, float), self.low / 10, self.high * 10)
        room = max(self.high - self.low, 1.0)
        return np.clip(np.asarray(values, float), self.low - room, self.high + room)


def _told(values: ArrayLike, *, is_log: bool) -> NDArray[np.float64]:
    """The values that such an axis may show, ascending."""
    told = np.asarray(values, float)
    told = told[np.isfinite(told)]
    return np.sort(told[told > 0] if is_log else told)


def _reach(told: NDArray[np.float64], *, is_log: bool) -> tuple[float, float]:
    # Percentiles that are values themselves: between two neighbours there may be thirty decades.
    low, high = float(np.quantile(told, 0.1, method="higher")), float(np.quantile(told, 0.9, method="lower"))
    low, high = min(low, high), max(low, high)
    if is_log:
        return low / FAR, high * FAR
    width = (high - low) or max(abs(low), 1.0)
    return low - FAR_APART * width, high + FAR_APART * width


def edge_words(above: Sized, below: Sized, *, is_log: bool = True) -> list[str]:
    """What a subtitle says of the marks at the upper and at the lower edge, as far as there are any."""
    words = (("▲ beyond the axis", above), ("▼ zero or below the axis" if is_log else "▼ below the axis", below))
    return [text for text, rows in words if len(rows)]


def edge_marks(
    above: pd.DataFrame,
    below: pd.DataFrame,
    height: float,
    x: alt.X,
    colour: alt.Color | alt.Value,
    tips: Sequence[Any],
) -> list[alt.Chart]:
    """Marks at the edges of a plot for rows that lie beyond them; none where there are no such rows."""
    return [
        alt.Chart(inline(rows))
        .mark_point(shape=shape, filled=True, size=55, opacity=1)
        .encode(x=x, y=alt.value(place), color=colour, tooltip=list(tips))
        for rows, shape, place in ((above, "triangle-up", 5), (below, "triangle-down", height - 5))
        if len(rows)
    ]


def within_axes(frame: pd.DataFrame, astray: Set[str]) -> pd.DataFrame:
    """Curves of sharpness in panels, with ``value`` null where it has no place on its panel's logarithmic axis.

    A top eigenvalue can be zero or below, and that of a run that diverged is far above all others.

    Args:
        frame: columns ``run``, ``operator`` (each has a panel), ``line`` ("sharpness", or a limit beside it), ``step``
            and ``value``.
        astray: names of the runs that diverged.

    Returns:
        the rows of panels with anything to show, with ``told`` (the value), ``edge`` ("above" or "below" where it lies
        beyond the axis), and ``piece``, which tells the stretches of a curve apart that no line joins.

    Raises:
        NothingToShowError: no sharpness is a number above zero.
    """
    told, parts = frame["value"].astype(float), []
    of_run = frame["line"] == "sharpness"
    for _, rows in frame[of_run].groupby("operator", sort=False):
        curves = [(name in astray, own["value"].to_numpy(float)) for name, own in rows.groupby("run", sort=False)]
        limits = Limits.of([c for gone, c in curves if not gone], [c for gone, c in curves if gone])
        if limits is not None:
            panel = frame[frame["operator"] == rows["operator"].iloc[0]]
            sides = np.where(
                told[panel.index] > limits.high, "above", np.where(told[panel.index] < limits.low, "below", "")
            )
            parts.append(panel.assign(edge=np.where(of_run[panel.index], sides, "")))
    if not parts:
        raise NothingToShowError("no sharpness on record is a number above zero")
    frame = pd.concat(parts, ignore_index=True)
    frame["told"] = frame["value"]
    frame["value"] = frame["value"].astype(float).where(frame["edge"] == "")
    keys = ["run", "operator", "line"]
    missing = frame["value"].isna().astype(int).groupby([frame[key] for key in keys], sort=False).cumsum()
    return frame.assign(piece=frame.groupby(keys, sort=False)["step"].transform(pieces) + missing)
