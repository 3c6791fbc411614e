"""Finite norms that the table ``layers`` can't hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.findings.window import NORMS
from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.rows.table_columns import is_beyond_single

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.probes.rows.buffer import Drained

BEYOND_SINGLE = "some norms are beyond float32"
"""Beginning of the note of `beyond_single`."""


def beyond_single(drained: Drained, first_step: int, names: Sequence[str]) -> str | None:
    """A note on the first weight or gradient whose norm the table ``layers`` can't hold; None where it holds all.

    Args:
        drained: the steps.
        first_step: index of the first.
        names: the names of the parameters.
    """
    columns = [COLUMNS.index(quantity) for quantity in NORMS]
    shown = np.array([row.active & row.recorded for row in drained.rows], dtype=bool)
    lost = is_beyond_single(drained.values[:, columns]) & shown.reshape(len(drained.rows), 1, -1)
    if not lost.any():
        return None
    row, column, tensor = np.argwhere(lost)[0].tolist()
    value = drained.values[row, columns[column], tensor]
    return (
        f"{BEYOND_SINGLE}, first {NORMS[column]} {value:.4g} of {names[tensor]} in step {first_step + row}: layers "
        "holds them as infinite or zero, grad_norm and weight_norm of steps as they are"
    )
