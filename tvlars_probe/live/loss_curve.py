"""A curve of any length kept as a few hundred points, the extremes among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_POINTS = 400
"""Points that a curve has at most."""


class LossCurve:
    """Losses by step. Beyond `MOST_POINTS` it is thinned: of each stretch of steps the lowest and the highest stay.

    Of a stretch the first loss that isn't finite stays, too, and so do the very first and the last point.
    """

    def __init__(self) -> None:
        self._steps: NDArray[np.int64] = np.empty(0, np.int64)
        self._losses: NDArray[np.float64] = np.empty(0)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """Pairs of step and loss, in order of steps."""
        return tuple(zip(self._steps.tolist(), self._losses.tolist(), strict=True))

    def add(self, steps: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Add losses of later steps, in order of steps."""
        self._steps = np.concatenate([self._steps, steps])
        self._losses = np.concatenate([self._losses, losses])
        if len(self._steps) > MOST_POINTS:
            kept = _telling(self._steps, self._losses, MOST_POINTS // 6)
            self._steps, self._losses = self._steps[kept], self._losses[kept]

    def cut(self, step: int) -> None:
        """Forget ``step`` and later ones."""
        count = int(np.searchsorted(self._steps, step))
        self._steps, self._losses = self._steps[:count], self._losses[:count]


def _telling(steps: NDArray[np.int64], losses: NDArray[np.float64], stretches: int) -> NDArray[np.int64]:
    """The indices, ascending, of the points that stay; at most three for each stretch, and two."""
    # In Python's integers: steps of a stranger's trace may lie as far apart as 64 bits allow.
    width = (int(steps[-1]) - int(steps[0])) // stretches + 1
    stretch = (steps - steps[0]) // width
    finite = np.flatnonzero(np.isfinite(losses))
    odd = np.flatnonzero(~np.isfinite(losses))
    in_order: Any = finite[np.lexsort((losses[finite], stretch[finite]))]
    kept = [np.array([0, len(steps) - 1]), odd[_first_of_each(stretch[odd])]]
    kept += [in_order[_first_of_each(stretch[in_order])], in_order[::-1][_first_of_each(stretch[in_order[::-1]])]]
    return np.unique(np.concatenate(kept))


def _first_of_each(groups: NDArray[np.int64]) -> NDArray[np.intp]:
    """The index of the first entry of each group; equal groups stand together."""
    return np.flatnonzero(np.diff(groups, prepend=-1) != 0) if len(groups) else np.empty(0, np.intp)
