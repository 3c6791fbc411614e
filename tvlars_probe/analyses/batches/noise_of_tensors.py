"""Each tensor's signal and noise over windows of steps, from rows that are never all in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from tvlars_probe.analyses.batches.noise_scale import LAYER_COLUMNS, LAYER_WINDOWS, LEVEL, in_order, ratio_of, window_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

COLUMNS = (
    "step", "phase", "source", "scope", "scope_kind", "gradient_square", "gradient_square_error", "noise_trace",
    "noise_trace_error", "split", "samples", "created_at",
)  # fmt: skip
"""Columns of the table ``noise`` that are read of tensors."""


def windows_of(steps: NDArray[np.int64], window: int | None = None) -> NDArray[np.int64]:
    """The first step of each window, ascending; windows hold an equal number of the recorded steps.

    Args:
        steps: the steps recorded in training, ascending.
        window: recorded steps of a window, at least; by default as of the whole model.
    """
    if not len(steps):
        return np.empty(0, np.int64)
    length = max(window_of(len(steps), window), -(-len(steps) // LAYER_WINDOWS))
    # What is left over at the end belongs to the last whole window.
    return steps[: max(len(steps) // length, 1) * length : length]


class TensorSums:
    """Sums over each tensor's rows in each window.

    Args:
        firsts: the first step of each window, ascending.
        phase: the phase whose rows count; None for any.
    """

    def __init__(self, firsts: NDArray[np.int64], phase: str | None = None) -> None:
        self._firsts, self._phase = firsts, phase
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._probes: list[pd.DataFrame] = []

    def add(self, batches: Iterator[pa.RecordBatch]) -> TensorSums:
        """Add rows, which have the columns `COLUMNS`. Returns itself."""
        for batch in batches:
            rows = batch.to_pandas()
            rows = rows[rows["scope_kind"].astype(str) == "tensor"]
            if self._phase is not None:
                rows = rows[rows["phase"].astype(str) == self._phase]
            finite = np.isfinite(rows["gradient_square"]) & np.isfinite(rows["noise_trace"])
            is_training = rows["source"].astype(str) == "training"
            self._add_training(rows[finite & is_training])
            if len(probes := rows[finite & ~is_training]):
                self._probes.append(probes)
        return self

    def _add_training(self, rows: pd.DataFrame) -> None:
        if not len(rows) or not len(self._firsts):
            return
        step = rows["step"].to_numpy(np.int64)
        window = np.searchsorted(self._firsts, step, side="right") - 1
        x, y = rows["gradient_square"].to_numpy(float), rows["noise_trace"].to_numpy(float)
        # The number of rows, both sums, all products, and the first and the last step.
        each = np.column_stack([np.ones(len(rows)), x, y, x * x, y * y, x * y])
        for name, places in rows.groupby(rows["scope"].astype(str), sort=False).indices.items():
            sums = self._sums.setdefault(str(name), _blank(len(self._firsts)))
            mine = places[window[places] >= 0]
            np.add.at(sums[:, :6], window[mine], each[mine])
            np.minimum.at(sums[:, 6], window[mine], step[mine])
            np.maximum.at(sums[:, 7], window[mine], step[mine])

    def frame(self) -> pd.DataFrame:
        """A row per tensor and window, and per tensor and row of a probe: the columns `LAYER_COLUMNS`."""
        rows = [_row(name, sums) for name, windows in self._sums.items() for sums in windows if sums[0] > 0]
        probes = in_order(pd.concat(self._probes)).to_dict("records") if self._probes else []
        for probe in probes:
            x, y = float(probe["gradient_square"]), float(probe["noise_trace"])
            xx, yy = (float("nan" if probe[e] is None else probe[e]) ** 2 for e in _ERRORS)
            ratio = ratio_of(x, y, xx, yy, 0.0, float(stats.norm.ppf((1 + LEVEL) / 2)))
            rows.append(_entry(str(probe["scope"]), "probe", 1, probe["step"], probe["step"], x, y, ratio))
        return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


_ERRORS = ("gradient_square_error", "noise_trace_error")


def _blank(windows: int) -> NDArray[np.float64]:
    sums = np.zeros((windows, 8))
    sums[:, 6], sums[:, 7] = np.inf, -np.inf
    return sums


def _row(name: str, sums: NDArray[np.float64]) -> dict[str, Any]:
    n = sums[0]
    x, y = float(sums[1] / n), float(sums[2] / n)
    xx, yy, xy = np.nan, np.nan, np.nan
    if n > 2:
        xx, yy, xy = (sums[3:6] / n - [x * x, y * y, x * y]) / (n - 1)
    ratio = ratio_of(x, y, xx, yy, xy, float(stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1))))
    return _entry(name, "training", int(n), sums[6], sums[7], x, y, ratio)


def _entry(
    name: str, source: str, rows: int, first: float, last: float, x: float, y: float, ratio: Any
) -> dict[str, Any]:
    return {
        "step": int((first + last) // 2),
        "first_step": int(first),
        "last_step": int(last),
        "rows": rows,
        "source": source,
        "parameter": name,
        "gradient_square": x,
        "noise_trace": y,
        "simple_batch": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "is_open": ratio.is_open,
    }
