"""Which tensors are furthest from their own median: what a viewer or a tracker shows of thousands of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.traces.arrays import numbers, with_nan
from tvlars_probe.traces.datasets import distinct

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

LENGTH = 64
"""Recorded steps, the latest ones, of which the median is taken."""


@dataclass(frozen=True, slots=True)
class Far:
    """A tensor and how far its figure is from its own median.

    Attributes:
        parameter: name of the tensor.
        value: the figure in the last step in which it has one.
        median: the median of its last `LENGTH` figures, that one included.
        factor: value/median, or its inverse where that is above 1; infinite where one of them is zero or not finite.
    """

    parameter: str
    value: float
    median: float
    factor: float


class OwnMedians:
    """One quantity of every tensor in the last `LENGTH` recorded steps.

    Args:
        length: how many of them.
    """

    def __init__(self, length: int = LENGTH) -> None:
        self._length = length
        self._places: dict[str, int] = {}
        self._recent = np.empty((0, 0))

    @property
    def last(self) -> NDArray[np.float64]:
        """The last figure of every tensor, NaN where it has none: of shape (tensors,)."""
        if not len(self._recent):
            return np.full(len(self._places), np.nan)
        last: NDArray[np.float64] = self._recent[-1]
        return last

    def forget(self) -> None:
        """Begin anew: the run was cut back."""
        self._places, self._recent = {}, np.empty((0, 0))

    def add(self, parameters: list[str], figures: NDArray[np.float64]) -> None:
        """Add recorded steps.

        Args:
            parameters: the names of the tensors.
            figures: of shape (steps, tensors), NaN where a tensor took no part.
        """
        for name in parameters:
            self._places.setdefault(name, len(self._places))
        steps = figures[-self._length :]
        wide = np.full((len(steps), len(self._places)), np.nan)
        wide[:, [self._places[name] for name in parameters]] = steps
        kept = self._recent[max(0, len(self._recent) + len(steps) - self._length) :]
        room = ((0, 0), (0, len(self._places) - kept.shape[1]))
        self._recent = np.concatenate([np.pad(kept, room, constant_values=np.nan), wide])

    def furthest(self, count: int) -> list[Far]:
        """The tensors furthest from their own median by factor in the last step, the furthest first.

        A tensor without a figure in the last step is left out, and so is one at its median.
        """
        if not len(self._recent):
            return []
        names, last = [*self._places], self._recent[-1]
        there = np.flatnonzero(~np.isnan(last))
        if not len(there):
            return []
        medians = _medians(self._recent[:, there])
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(np.log(np.abs(last[there])) - np.log(np.abs(medians)))
        # Zero beside zero, or infinity beside infinity, is no distance.
        distance = np.where(last[there] == medians, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))
        order = np.argsort(-distance, kind="stable")[:count]
        return [
            Far(names[there[k]], float(last[there[k]]), float(medians[k]), float(np.exp(distance[k])))
            for k in order.tolist()
            if distance[k] > 0
        ]


def _medians(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each column over the figures that it has, at least one; as `numpy.nanmedian`, some times faster."""
    ordered = np.sort(figures, axis=0)  # NaN last
    counts = (~np.isnan(figures)).sum(axis=0)
    columns = np.arange(figures.shape[1])
    low, high = ordered[(counts - 1) // 2, columns], ordered[counts // 2, columns]
    middle: NDArray[np.float64] = np.where(low == high, low, low / 2 + high / 2)  # infinities of one sign stay
    return middle


def as_matrices(
    layers: pa.Table, columns: list[str], *, since: int | None = None, last: int | None = None
) -> tuple[NDArray[np.int64], list[str], dict[str, Any]]:
    """Rows of the table ``layers``, in any order, as matrices of steps and tensors.

    Args:
        layers: with ``step``, ``parameter`` and ``columns``.
        columns: the figures wanted.
        since: the first step wanted, by default that of the table.
        last: how many steps are wanted, the last ones; all by default.

    Returns:
        the steps, the tensors' names, and by column a matrix (steps, tensors), NaN where there is no row or no figure.
    """
    in_rows, _ = numbers(layers["step"])
    steps = _distinct(in_rows)
    steps = steps[steps >= since] if since is not None else steps
    steps = steps[-last:] if last is not None else steps
    encoded: Any = layers["parameter"].combine_chunks()
    encoded = encoded if hasattr(encoded, "dictionary") else encoded.dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    wanted: Any = slice(None)
    if len(steps) and steps[0] > in_rows.min():
        wanted = np.flatnonzero(in_rows >= steps[0])
    at_step = np.searchsorted(steps, in_rows[wanted]) if len(steps) else np.empty(0, np.int64)
    places = at_step * len(names) + numbers(encoded.indices)[0][wanted] if len(steps) else at_step
    matrices: dict[str, Any] = {}
    for column in columns if len(steps) else ():
        matrix = np.full(len(steps) * len(names), np.nan)
        matrix[places] = with_nan(layers[column])[wanted]
        matrices[column] = matrix.reshape(len(steps), len(names))
    return steps, names, matrices


_NARROW = 1 << 24
"""Steps between the first and the last up to which they are counted off and not sorted."""


def _distinct(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each step once, ascending."""
    if not len(steps):
        return steps
    first, last = int(steps.min()), int(steps.max())
    if last - first >= _NARROW:
        return distinct(steps)
    there = np.zeros(last - first + 1, np.bool_)
    there[steps - first] = True
    return np.flatnonzero(there) + first
