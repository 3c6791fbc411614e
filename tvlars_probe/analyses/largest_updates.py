"""Which weights were changed most by a single update, and when?

A *weight* is a tensor of two or more dimensions. Its update is measured against the weight that it changes: ‖Δw‖/‖w‖.
Biases and the scales of normalisation begin at zero or near it, and change by more than themselves in sound runs, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from tvlars_probe.traces.reader import Trace

COLUMNS = ("parameter", "step", "update_norm", "weight_norm", "lr", "trust_ratio")
"""Columns of the table ``layers`` that are read."""


def largest_updates(trace: Trace, *, phase: str | None = None, most: int = 5) -> pd.DataFrame:
    """The largest update of each weight, relative to the weight.

    Rows are read in batches, of which only the largest are kept. An update whose norm isn't finite is passed over. One
    that moves a weight of zeros is infinitely large.

    Args:
        trace: the run's trace.
        phase: whose tensors; the last phase by default.
        most: how many weights, those with the largest updates.

    Returns:
        `COLUMNS`, and ``update_ratio``, ‖Δw‖/‖w‖: a row per weight with the first step of its largest one, in
        descending order. Without rows where no norms of updates are on record.
    """
    phases = trace.manifest.parameters
    chosen = phases.get(phase or next(reversed(phases), ""), [])
    weights = {p["name"] for p in chosen if len(p.get("shape") or ()) > 1}

    def largest(batches: Iterator[pa.RecordBatch]) -> pd.DataFrame:
        best = pd.DataFrame({name: pd.Series(dtype="float64") for name in (*COLUMNS, "update_ratio")})
        for batch in batches:
            best = _largest(pd.concat([best, _candidates(batch, weights, best, most)]), most)
        return best

    found = trace.batches("layers", COLUMNS, largest).reset_index(drop=True)
    return found.astype({"step": "int64"})


def _candidates(batch: pa.RecordBatch, weights: set[str], best: pd.DataFrame, most: int) -> pd.DataFrame:
    """The rows of a batch that may be among the largest; of most batches hardly any."""
    update, weight = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("update_norm", "weight_norm"))
    with np.errstate(all="ignore"):
        ratio = update.astype(np.float64) / weight
    least = best["update_ratio"].iloc[-1] if len(best) == most else 0.0
    rows = np.flatnonzero(np.isfinite(update) & (ratio >= least))
    frame = batch.take(rows).to_pandas().astype({"parameter": str}).assign(update_ratio=ratio[rows])
    return _largest(frame[frame["parameter"].isin(weights)], most)


def _largest(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    ordered = rows.sort_values(["update_ratio", "step"], ascending=[False, True], kind="stable")
    return ordered.drop_duplicates("parameter").head(most)
