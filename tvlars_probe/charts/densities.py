"""Which points of a spectral density a logarithmic chart shows: those that eigenvalues have put there.

A density is a sum of Gaussians. Away from the eigenvalues it falls without end, and a line through the last points
before a gap and the first ones behind it would show eigenvalues where there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Set

    import pandas as pd
    from numpy.typing import NDArray

LEAST_MASS = 1e-12
"""A hump with a smaller share of the eigenvalues is rounding: no model has so many parameters."""

FOOT = 1e-2
"""The axis begins at this share of the lowest hump's height."""

FAR = 3.0
"""How many widths of the other runs' spectra a run that diverged may reach beyond them."""

TAIL = 1e-6
"""Below this share of it a point lies in a gap: more than five standard deviations from every eigenvalue."""


def drawn(curve: pd.DataFrame) -> pd.DataFrame:
    """The points of one density that are drawn.

    Args:
        curve: one measurement, ascending in ``grid``, with ``density``.

    Returns:
        its rows beside eigenvalues, with ``height``, the density as it is drawn (at the foot of the axis where it is
        lower), and ``piece``, the number of the stretch between two gaps. None where the density is nowhere a number
        above zero.
    """
    curve = curve[np.isfinite(curve["density"]) & np.isfinite(curve["grid"])]
    density = curve["density"].to_numpy(float)
    lowest = _lowest_hump(curve["grid"].to_numpy(float), density)
    kept = density > TAIL * lowest
    # A point that is left out ends a stretch.
    piece = np.cumsum(~kept)
    return curve.assign(height=np.maximum(density, FOOT * lowest), piece=piece)[kept]


def _lowest_hump(grid: NDArray[np.float64], density: NDArray[np.float64]) -> float:
    """Height of the lowest hump that holds eigenvalues; infinite where there is none."""
    if not len(density) or density.max() <= 0:
        return float("inf")
    # A hump reaches from one local minimum to the next. Equal values beside each other count as one.
    starts = np.append(0, np.flatnonzero(np.diff(density)) + 1)
    change = np.diff(density[starts])
    valleys = starts[1:-1][(change[:-1] < 0) & (change[1:] > 0)]
    cuts = np.append(0, valleys)
    width = np.gradient(grid) if len(grid) > 1 else np.ones(1)
    mass, height = np.add.reduceat(density * width, cuts), np.maximum.reduceat(density, cuts)
    real = mass > LEAST_MASS * mass.sum()
    return float(height[real].min())


def within_reach(frame: pd.DataFrame, astray: Set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Cut the densities of runs that diverged off where they would squeeze all others to a line.

    Args:
        frame: columns ``run``, ``operator`` and ``grid``.
        astray: names of the runs that diverged.

    Returns:
        the rows within `FAR` widths of what the other runs hold, for each operator; and a sentence for each run that
        goes on beyond.
    """
    kept, told = np.ones(len(frame), bool), []
    for operator, rows in frame.groupby("operator", sort=False):
        calm = rows.loc[~rows["run"].isin(astray), "grid"]
        if not len(calm):
            continue
        room = FAR * (calm.max() - calm.min())
        within = frame["grid"].between(calm.min() - room, calm.max() + room)
        cut = (frame["operator"] == operator) & ~within
        kept &= ~cut.to_numpy()
        for run, beyond in frame[cut].groupby("run", sort=False)["grid"]:
            end = float(beyond.iloc[int(beyond.abs().to_numpy().argmax())])
            told.append(f"{run} goes on to {end:.3g} ({operator})")
    return frame[kept], told
