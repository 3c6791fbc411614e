"""From drained steps to the rows of the tables ``layers`` and ``steps``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.admission.names import encodable
from tvlars_probe.probes.readers.columns import COLUMNS, SPECTRAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.probes.rows.buffer import Drained


def single(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The figures as the table ``layers`` holds them."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def is_beyond_single(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a finite figure is infinite, or one above zero zero, as float32."""
    narrow = single(values)
    beyond: NDArray[np.bool_] = np.isfinite(values) & (np.isinf(narrow) | ((narrow == 0) & (values != 0)))
    return beyond


def layer_columns(
    drained: Drained, first_step: int, names: Sequence[str], nulls: Sequence[frozenset[str]]
) -> dict[str, Any]:
    """The rows of the table ``layers``, by column: one per recorded step and parameter that took part in it.

    Args:
        drained: the steps.
        first_step: index of the first.
        names: the names of the parameters.
        nulls: per parameter, the columns that are null for it.
    """
    import pyarrow as pa

    recorded = np.array([row.recorded for row in drained.rows], dtype=bool)
    # Reshaped, because NumPy can't tell the number of parameters where there are no rows.
    active = np.array([row.active for row in drained.rows], dtype=bool).reshape(len(drained.rows), len(names))
    unread = np.array([row.unread for row in drained.rows], dtype=bool).reshape(active.shape)
    # `nonzero` goes through the rows in order: so the table is in order of steps, as the writer wants it.
    at_row, at_parameter = np.nonzero(active & recorded[:, None])
    columns: dict[str, Any] = {
        "step": first_step + at_row,
        "parameter": pa.DictionaryArray.from_arrays(
            at_parameter.astype(np.int32), pa.array([*map(encodable, names)], pa.string())
        ),
        "lr": single(np.array([row.lr for row in drained.rows], dtype=np.float64))[at_row, at_parameter],
    }
    # Null and NaN differ: null is what has no value, NaN a value that isn't a number. Hence masks.
    for k, column in enumerate(COLUMNS):
        mask = np.array([column in missing for missing in nulls], dtype=bool)[at_parameter]
        if column == "update_norm":
            mask |= unread[at_row, at_parameter]
        if not mask.all():
            values = single(np.ascontiguousarray(drained.values[:, k])[at_row, at_parameter])
            columns[column] = pa.array(values, mask=mask) if mask.any() else values
    return columns | _spectral_columns(drained, at_row, at_parameter)


def _spectral_columns(drained: Drained, at_row: NDArray[np.intp], at_parameter: NDArray[np.intp]) -> dict[str, Any]:
    """The columns of spectral norms that any of these rows and parameters has."""
    import pyarrow as pa

    columns = {}
    measured = np.array([row.spectral is not None for row in drained.rows], dtype=bool)
    place = np.cumsum(measured) - 1  # among the rows that have any
    figures = [row.spectral.numpy() for row in drained.rows if row.spectral is not None]
    read = [row.spectral_read for row in drained.rows if row.spectral_read is not None]
    for k, column in enumerate(SPECTRAL if figures else ()):
        there = measured[at_row].copy()
        there[there] = np.array(read)[place[at_row[there]], k, at_parameter[there]]
        if there.any():
            values = np.full(len(at_row), np.nan)
            values[there] = np.array(figures)[place[at_row[there]], k, at_parameter[there]]
            columns[column] = pa.array(single(values), mask=~there)
    return columns


def clip_scales(drained: Drained) -> NDArray[np.float64]:
    """The factor by which each step's gradient was clipped; NaN where it isn't known."""
    # What the loop tells comes before what the recorder has seen of its own clipping.
    pairs = zip(drained.rows, drained.clips[:, 1], strict=True)
    return np.array([seen if row.clip_scale is None else row.clip_scale for row, seen in pairs], dtype=np.float64)


def step_columns(
    drained: Drained, first_step: int, seen: Mapping[str, NDArray[np.int64]], losses: NDArray[np.float64]
) -> dict[str, Any]:
    """The rows of the table ``steps``, by column.

    Args:
        drained: the steps.
        first_step: index of the first.
        seen: samples and tokens seen up to and including each step, over all ranks; −1 where unknown.
        losses: mean losses over all ranks.
    """
    import pyarrow as pa

    rows = drained.rows
    k = COLUMNS.index
    whole = np.array([row.recorded and bool(row.active.any()) for row in rows], dtype=bool)

    def total(column: str) -> Any:
        # √Σ‖·‖² over the tensors: of their figures in ``layers``, or of what was read where those can't hold it.
        values = drained.values[:, k(column)]
        narrow = single(values).astype(np.float64)
        active = np.array([row.active for row in rows]).reshape(values.shape)
        norms = np.where(active, np.where(is_beyond_single(values), values, narrow), 0.0)
        # Squares of float64 norms may lie outside the range of float64.
        highest = norms.max(axis=1, initial=0.0)
        scale = np.where(np.isfinite(highest) & ((highest > 1e140) | (highest < 1e-140)) & (highest > 0), highest, 1.0)
        with np.errstate(over="ignore"):
            return pa.array(scale * np.sqrt(np.square(norms / scale[:, None]).sum(axis=1)), mask=~whole)

    lr = np.array([row.lr[0] if len(row.lr) else np.nan for row in rows])
    phi = np.array([row.phi for row in rows])
    norms, scales = drained.clips[:, 0], clip_scales(drained)
    told = np.array([row.loss_told for row in rows], dtype=bool)
    return {
        "step": first_step + np.arange(len(rows)),
        "epoch": pa.array([row.epoch for row in rows], pa.int64()),
        "phase": pa.array([encodable(row.phase) for row in rows]).dictionary_encode(),
        "loss": pa.array(losses, mask=~told),
        "lr": pa.array(lr, mask=np.isnan(lr)),
        "phi": pa.array(phi, mask=np.isnan(phi)),
        "grad_norm": total("grad_norm"),
        "weight_norm": total("weight_norm"),
        "grad_norm_before_clipping": pa.array(norms, mask=np.isnan(norms)),
        "clip_scale": pa.array(scales, mask=np.isnan(scales)),
        **{unit: pa.array(counts, mask=counts < 0) for unit, counts in seen.items()},
        "time": pa.array([row.time for row in rows], pa.timestamp("us", tz="UTC")),
        "step_seconds": [row.step_seconds for row in rows],
        "probe_seconds": [row.probe_seconds for row in rows],
    }
