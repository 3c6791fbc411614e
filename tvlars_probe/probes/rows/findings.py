"""Where a run went wrong: the first step and the first tensor that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.rows.table_columns import is_beyond_single

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tvlars_probe.probes.rows.buffer import Drained

BEYOND_SINGLE = "some norms are beyond float32"
"""Beginning of the note of `beyond_single`."""

_NORMS = ("weight_norm", "grad_norm")


def first_non_finite(
    drained: Drained, losses: NDArray[np.float64], first_step: int, names: Sequence[str]
) -> dict[str, Any] | None:
    """The first step whose loss, weights or gradient are not finite; None where all steps are.

    A norm that is finite but beyond float32 is none of these: see `beyond_single`.

    Args:
        drained: the steps.
        losses: their mean losses over all ranks.
        first_step: index of the first.
        names: the names of the parameters.

    Returns:
        step, loss, tensor and quantity. The tensor is the first one, in the order of the parameters, whose weights are
        not finite already; without such a one, the first whose gradient isn't. The quantity says which: weight_norm or
        grad_norm. Both are None where no recorded norm shows a tensor. Where several tensors went in that step, the
        list ``tensors`` names all of them.
    """
    for index, row in enumerate(drained.rows):
        bad_loss = row.loss_told and not np.isfinite(losses[index])
        # In a step without norms the values are all NaN, and say nothing.
        tensors, quantity = _bad_tensors(drained.values[index], row.active) if row.recorded else ([], None)
        if bad_loss or tensors:
            bad = [names[i] for i in tensors]
            loss = float(losses[index]) if row.loss_told else None
            found = {"step": first_step + index, "loss": loss, "tensor": next(iter(bad), None), "quantity": quantity}
            return found | ({"tensors": bad} if len(bad) > 1 else {})
    return None


def beyond_single(drained: Drained, first_step: int, names: Sequence[str]) -> str | None:
    """A note on the first weight or gradient whose norm the table ``layers`` can't hold; None where it holds all.

    Args:
        drained: the steps.
        first_step: index of the first.
        names: the names of the parameters.
    """
    columns = [COLUMNS.index(quantity) for quantity in _NORMS]
    shown = np.array([row.active & row.recorded for row in drained.rows], dtype=bool)
    lost = is_beyond_single(drained.values[:, columns]) & shown.reshape(len(drained.rows), 1, -1)
    if not lost.any():
        return None
    row, column, tensor = np.argwhere(lost)[0].tolist()
    value = drained.values[row, columns[column], tensor]
    return (
        f"{BEYOND_SINGLE}, first {_NORMS[column]} {value:.4g} of {names[tensor]} in step {first_step + row}: layers "
        "holds them as infinite or zero, grad_norm and weight_norm of steps as they are"
    )


def _bad_tensors(values: NDArray[np.float64], active: NDArray[np.bool_]) -> tuple[list[int], str | None]:
    # Weights first: they are those before the update, and spoil the gradients of other tensors, not the reverse.
    for quantity in _NORMS:
        bad = np.flatnonzero(active & ~np.isfinite(values[COLUMNS.index(quantity)]))
        if len(bad):
            return bad.tolist(), quantity
    return [], None
