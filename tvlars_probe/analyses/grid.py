"""The table ``layers`` as matrices: a row per recorded step, a column per parameter tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, order: Iterable[str] = ()) -> LayerGrid:
        """Arrange rows of ``layers``.

        Args:
            frame: columns ``step``, ``parameter`` and any others that are numbers.
            order: names of parameters in the order wanted; others follow as they come.
        """
        names = frame["parameter"].astype("category")
        codes = names.cat.codes.to_numpy()
        categories = [str(name) for name in names.cat.categories]
        present = np.zeros(len(categories), bool)
        present[codes] = True
        found = [name for name, there in zip(categories, present, strict=True) if there]
        wanted = [name for name in order if name in {*found}]
        parameters = [*wanted, *(name for name in found if name not in {*wanted})]
        place = {name: i for i, name in enumerate(parameters)}
        column = np.array([place.get(name, -1) for name in categories], np.int64)[codes]
        steps, row = np.unique(frame["step"].to_numpy(), return_inverse=True)
        values = {}
        for name in frame.columns.difference(["step", "parameter", "run"], sort=False):
            source = frame[name].to_numpy()
            matrix = np.full((len(steps), len(parameters)), np.nan, source.dtype)
            matrix[row, column] = source
            values[name] = matrix
        return cls(steps.astype(np.int64), tuple(parameters), values)


def column_medians(matrix: Matrix) -> NDArray[np.float64]:
    """Median of each column over its finite entries; NaN where there is none.

    Sorting puts NaN last, which takes a third of `numpy.nanmedian`'s time on tall matrices.
    """
    finite = np.sort(np.where(np.isfinite(matrix), matrix, np.nan), axis=0)
    count = np.isfinite(finite).sum(axis=0)
    columns = np.arange(matrix.shape[1])
    if not matrix.shape[0]:
        return np.full(matrix.shape[1], np.nan)
    low, high = finite[np.maximum(count - 1, 0) // 2, columns], finite[count // 2 % len(finite), columns]
    return np.where(count > 0, (low.astype(np.float64) + high) / 2, np.nan)
