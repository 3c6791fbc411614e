"""The table ``layers`` as matrices: a row per recorded step, a column per parameter tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Matrix = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """Columns of ``layers`` as matrices of one shape.

    Attributes:
        steps: the recorded steps, ascending, (T,).
        parameters: names of the tensors, (P,).
        values: a (T, P) matrix per column; NaN where a step has no row of that tensor.
    """

    steps: NDArray[np.int64]
    parameters: tuple[str, ...]
    values: Mapping[str, Matrix]

    def __getitem__(self, column: str) -> Matrix:
        return self.values[column]

    def block(self, columns: slice) -> LayerGrid:
        """Some of the tensors, as a grid that shares memory with this one."""
        return LayerGrid(
            self.steps, self.parameters[columns], {name: matrix[:, columns] for name, matrix in self.values.items()}
        )

    def of_steps(self, kept: NDArray[np.bool_]) -> LayerGrid:
        """Some of the steps, as a grid of its own; ``kept`` is (T,)."""
        values = {name: matrix[kept] for name, matrix in self.values.items()}
        return LayerGrid(self.steps[kept], self.parameters, values)

    def blocks(self, cells: int = 1 << 19) -> Iterator[LayerGrid]:
        """Cut the grid into blocks of neighbouring tensors, each of up to ``cells`` entries or of one tensor.

        Analyses make many temporary float64 matrices of a block; at 2¹⁹ entries each takes 4 MiB.
        """
        width = max(cells // max(len(self.steps), 1), 1)
        for first in range(0, len(self.parameters), width):
            yield self.block(slice(first, first + width))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, order: Iterable[str] = ()) -> LayerGrid:
        """Arrange the rows of a frame of ``layers``.

        Args:
            frame: columns ``step`` and ``parameter``, and others of numbers; the column ``run`` is left out.
            order: names of parameters in the order wanted; the others follow.
        """
        names = frame["parameter"].astype("category")
        columns = frame.columns.difference(["step", "parameter", "run"], sort=False)
        piece = Rows(
            frame["step"].to_numpy(),
            names.cat.codes.to_numpy(),
            [str(name) for name in names.cat.categories],
            {str(name): frame[name].to_numpy() for name in columns},
        )
        return cls.from_rows([piece], np.unique(piece.step).astype(np.int64), order, piece.values)

    @classmethod
    def from_rows(
        cls,
        pieces: Iterable[Rows],
        steps: NDArray[np.int64],
        order: Iterable[str] = (),
        columns: Iterable[str] = (),
        *,
        most_tensors: int | None = None,
    ) -> LayerGrid:
        """Arrange rows that come piece by piece. Only the matrices are held, not the rows.

        Each tensor's values lie next to one another in memory: analyses go through them tensor by tensor.

        Args:
            pieces: rows of the table, in any order.
            steps: all the steps that occur in the pieces, ascending.
            order: names of parameters in the order wanted; the others follow.
            columns: columns that the grid has even where there is no piece.
            most_tensors: how many tensors fit in memory; None for any number.

        Raises:
            TraceError: there are more tensors.
        """
        # ``held`` has a row per tensor, so that a new tensor is a new row. The grid's matrices are its transposes.
        found: dict[str, int] = {}
        held: dict[str, Matrix] = {name: np.empty((0, len(steps)), np.float32) for name in columns}
        for piece in pieces:
            # A batch's dictionary may hold names that none of its rows has: these make no tensor.
            present = np.bincount(piece.code, minlength=len(piece.names)) > 0
            for name, there in zip(piece.names, present, strict=True):
                if there:
                    found.setdefault(name, len(found))
            if most_tensors is not None and len(found) > most_tensors:
                raise TraceError(
                    f"the table layers has rows of more than {most_tensors:,} tensors in {len(steps):,} steps, which "
                    f"don't fit in memory: choose fewer steps, or record fewer by --record-every"
                )
            place = np.array([found.get(name, -1) for name in piece.names], np.int64)
            column, row = place[piece.code], np.searchsorted(steps, piece.step)
            for name, source in piece.values.items():
                held[name] = _with_room(held.get(name), len(found), len(steps), source.dtype)
                held[name][column, row] = source
        parameters = [*dict.fromkeys((*(name for name in order if name in found), *found))]
        at = [found[name] for name in parameters]
        in_order = at == list(range(len(at)))
        values = {}
        # One matrix at a time is copied into the order wanted, and let go: two of each would double the memory. Where
        # they are in order already, a slice needs no copy at all.
        for name in list(held):
            matrix = held.pop(name)
            values[name] = (matrix[: len(at)] if in_order else matrix[at]).T
        return cls(steps, tuple(parameters), values)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of ``layers``.

    Attributes:
        step: each row's step, (N,).
        code: each row's tensor, as an index into ``names``, (N,).
        names: names of tensors.
        values: the other columns, (N,) each.
    """

    step: NDArray[np.int64]
    code: NDArray[np.integer]
    names: Sequence[str]
    values: Mapping[str, NDArray[np.floating]]

    def of(self, steps: NDArray[np.int64]) -> Rows:
        """The rows of these steps, which ascend."""
        place = np.minimum(np.searchsorted(steps, self.step), len(steps) - 1)
        own = steps[place] == self.step
        return Rows(self.step[own], self.code[own], self.names, {name: v[own] for name, v in self.values.items()})


def _with_room(matrix: Matrix | None, tensors: int, steps: int, dtype: np.dtype) -> Matrix:
    """The matrix, grown to a row per tensor where it has fewer; new rows are NaN."""
    if matrix is not None and len(matrix) >= tensors:
        return matrix
    grown = np.full((tensors, steps), np.nan, dtype)
    if matrix is not None and len(matrix):
        grown[: len(matrix)] = matrix
    return grown


def norm_ratio(grid: LayerGrid) -> Matrix:
    """‖w‖/‖g‖ of each step and tensor, (T, P): the papers' LNR. Infinite where only the gradient is zero."""
    weight_norm, grad_norm = grid["weight_norm"], grid["grad_norm"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        ratio: Matrix = weight_norm / grad_norm
        # The quotient of two float32 numbers may lie outside float32: then all of them are float64.
        lost = (np.isinf(ratio) & (grad_norm != 0)) | ((ratio == 0) & (weight_norm != 0))
        if (lost & np.isfinite(weight_norm) & np.isfinite(grad_norm)).any():
            ratio = weight_norm.astype(np.float64) / grad_norm
    return ratio


def column_medians(matrix: Matrix) -> NDArray[np.float64]:
    """Median of each column over its finite entries; NaN where there is none."""
    # np.nanmedian would count infinities. A column at a time, the float64 copy is of one tensor only.
    medians = np.full(matrix.shape[1], np.nan)
    for column, values in enumerate(matrix.T):
        finite = values[np.isfinite(values)]
        medians[column] = median_of(finite.astype(np.float64))
    return medians


def median_of(values: NDArray[np.float64]) -> float:
    """The median of finite values; NaN of none."""
    # np.median takes several times as long for the few hundred values of a tensor, of which there may be thirty
    # thousand.
    if not len(values):
        return np.nan
    middle = (len(values) - 1) // 2, len(values) // 2
    low, high = np.partition(values, middle)[[*middle]]
    return float((low + high) / 2)
