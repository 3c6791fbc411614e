"""The figures of whole tensors from those of the shards that the ranks hold, when their rows cross to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.shards import TensorFigures, whole_figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.readers.layout import Layout
    from tvlars_probe.probes.rows.buffer import Drained

_NORMS = [COLUMNS.index(name) for name in ("weight_norm", "grad_norm", "update_norm")]
_DOT = COLUMNS.index("weight_grad_dot")


def make_whole(drained: Drained, ranks: Ranks, layout: Layout) -> None:
    """Put the whole tensors' figures in place of the shards', by one sum over the ranks, which all of them call.

    Norms are added as squares, inner products as they are, both divided by the number of ranks that hold each element.
    Trust ratios that follow from norms are computed from those of whole tensors. A tensor takes part in a step, and has
    a row, if all ranks have read it: a rank whose reading has failed makes its rows none.

    Args:
        drained: this rank's rows, which are changed.
        ranks: the ranks of the run.
        layout: the parameters.
    """
    due = [i for i, row in enumerate(drained.rows) if row.due]
    if not due or not layout.names:  # alike on all ranks
        return
    rows, values = [drained.rows[i] for i in due], drained.values[due]
    lacking = np.array([~(row.active & row.recorded) for row in rows])
    norms, dot, absent = _summed(values, lacking, ranks, layout)
    for k, (row, i) in enumerate(zip(rows, due, strict=True)):
        row.active &= absent[k] == 0
        if row.of_shards is None:
            continue
        for column, whole in ((_DOT, dot[k]), *zip(_NORMS, norms[:, k], strict=True)):
            mine = drained.values[i, column]
            mine[:] = np.where(row.of_shards[column], whole, mine)
        for span, fill in row.to_fill:
            fill(torch.from_numpy(drained.values[i])[:, span])


def _summed(
    values: NDArray[np.float64], lacking: NDArray[np.bool_], ranks: Ranks, layout: Layout
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Norms (3, rows, parameters) and inner products of whole tensors, and above 0 where a rank has read nothing."""
    on_device: Any = {"dtype": accumulation_dtype(ranks.device), "device": ranks.device}
    tables = [torch.tensor(values[:, column], **on_device) for column in (*_NORMS, _DOT)]
    copies = torch.tensor(layout.copies, **on_device)
    (whole,) = whole_figures(
        [TensorFigures(tables[:-1], [tables[-1], torch.tensor(lacking, **on_device)])],
        [copies],
        ranks,
        wide=layout.is_wide,
    )
    norms, (dot, absent) = torch.stack([*whole.norms]), whole.dots
    return tuple(t.cpu().numpy().astype(np.float64) for t in (norms, dot, absent))  # type: ignore[return-value]


def leave_out_shards(drained: Drained) -> list[int]:
    """Leave out what is known of this rank's shards only, where the other ranks may be gone.

    Where that is update_norm alone, since the optimizer itself has summed over the ranks, update_norm becomes null. Any
    other row of layers is left out.

    Args:
        drained: this rank's rows, which are changed.

    Returns:
        places of the rows whose layers are left out.
    """
    update = COLUMNS.index("update_norm")
    left_out = []
    for i, row in enumerate(drained.rows):
        if not row.recorded or row.of_shards is None:
            continue
        row.unread |= row.of_shards[update]
        if np.delete(row.of_shards, update, axis=0).any():
            row.recorded = False
            left_out.append(i)
    return left_out
