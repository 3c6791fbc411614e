"""When did a norm or a ratio of norms explode, in which tensors, and for how long?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses.grid import column_medians

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.grid import Matrix

QUANTITIES = {
    "lnr": "layer-wise norm ratio ‖w‖/‖g‖",
    "grad_norm": "gradient norm ‖g‖",
    "update_ratio": "update-to-weight ratio ‖Δw‖/‖w‖",
}
"""Quantities that are searched for explosions: the name in tables, and what it stands for."""

COLUMNS = (
    "quantity", "parameter", "exploded", "first_step", "peak_step", "peak", "later_median", "peak_over_median",
    "start_over_median", "recovery_steps",
)  # fmt: skip
"""Columns of the table of explosions."""

_TYPES = {"quantity": "object", "parameter": "object", "exploded": "bool"}
"""Data types of the columns that aren't float64, for a table without rows."""


def find_explosions(
    quantity: str,
    values: Matrix,
    steps: NDArray[np.int64],
    parameters: tuple[str, ...],
    *,
    factor: float = 5.0,
    settled: float = 0.5,
) -> pd.DataFrame:
    """Date the explosions of one quantity, a row per tensor.

    A tensor *explodes* at the first step t at which x_t > factor · max(x_0, m). Here x_0 is its first finite value, and
    m its *later median*: the median over the recorded steps that follow the share ``settled`` of them. Both references
    are needed: a gradient that only shrinks from its initial size has exploded at no time, however small it ends. A
    tensor that starts beyond factor·m shows in ``start_over_median`` instead.

    ``recovery_steps`` counts from the explosion's first step to the first step after its peak that is back at or below
    the threshold. It is null if there is no such step.

    The papers speak of the explosion of the layer-wise norm ratio in the initial phase (arXiv:2309.14053, section 3)
    without a threshold; ``factor`` is ours.

    Args:
        quantity: name of the quantity, for the table.
        values: the quantity at each recorded step and tensor, (T, P); NaN where there is no row.
        steps: the recorded steps, ascending, (T,).
        parameters: names of the tensors, (P,).
        factor: how many times the larger of both references counts as an explosion.
        settled: share of the recorded steps after which a run counts as settled.

    Returns:
        The columns `COLUMNS`, a row per tensor, exploded or not.
    """
    # Without values argmax fails. The data types matter: ``exploded`` selects rows only as a boolean column.
    if not values.size:
        return pd.DataFrame({name: pd.Series(dtype=_TYPES.get(name, "float64")) for name in COLUMNS})
    late = values[int(len(values) * settled) :]
    median = column_medians(late)
    start = _first_finite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        # fmax passes over a reference that is NaN. A missing value exceeds nothing, an infinite one everything finite.
        over = values > factor * np.fmax(start, median)
        exploded = over.any(axis=0)
        first = over.argmax(axis=0)  # 0 where nothing exploded: masked below
        peak_at = np.where(np.isnan(values), -np.inf, values).argmax(axis=0)
        peak = values[peak_at, np.arange(values.shape[1])].astype(np.float64)
        back = ~over & (np.arange(len(values))[:, None] > peak_at) & ~np.isnan(values)
        recovered = np.where(exploded & back.any(axis=0), steps[back.argmax(axis=0)] - steps[first], np.nan)
        return pd.DataFrame(
            {
                "quantity": quantity,
                "parameter": list(parameters),
                "exploded": exploded,
                "first_step": np.where(exploded, steps[first], np.nan),
                "peak_step": steps[peak_at],
                "peak": peak,
                "later_median": median,
                "peak_over_median": peak / median,
                "start_over_median": start / median,
                "recovery_steps": recovered,
            },
            columns=list(COLUMNS),
        )


def _first_finite(values: Matrix) -> NDArray[np.float64]:
    """Each tensor's first finite value; NaN where it has none."""
    finite = np.isfinite(values)
    first = values[finite.argmax(axis=0), np.arange(values.shape[1])].astype(np.float64)
    return np.where(finite.any(axis=0), first, np.nan)
