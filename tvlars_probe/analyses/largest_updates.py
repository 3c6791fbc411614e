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
    from numpy.typing import NDArray

    from tvlars_probe.analyses.source import Source

    Floats = NDArray[np.float64]

COLUMNS = ("parameter", "step", "update_norm", "weight_norm", "lr", "trust_ratio")
"""Columns of the table ``layers`` that are read."""


def largest_updates(source: Source, *, most: int = 5) -> pd.DataFrame:
    """The largest update of each weight, relative to the weight.

    Rows are read in batches, of which only the largest are kept. An update whose norm isn't finite is passed over. One
    that moves a weight of zeros is infinitely large.

    Args:
        source: the phase of a run.
        most: how many weights, those with the largest updates. Weights of zeros are no more than half of them, unless
            too few others were updated.

    Returns:
        `COLUMNS`, and ``update_ratio``, ‖Δw‖/‖w‖: a row per weight with the first step of its largest one, in
        descending order. Without rows where no norms of updates are on record.
    """
    known = source.facts.parameters
    weights = {
        str(name)
        for name, shape in zip(known["name"], known["shape"], strict=True)
        if isinstance(shape, list | tuple) and len(shape) > 1
    }

    def largest(batches: Iterator[pa.RecordBatch]) -> pd.DataFrame:
        nothing = pd.DataFrame({name: pd.Series(dtype="float64") for name in (*COLUMNS, "update_ratio")})
        best, zeros = nothing, nothing
        for batch in batches:
            update, weight = (
                batch.column(name).to_numpy(zero_copy_only=False) for name in ("update_norm", "weight_norm")
            )
            with np.errstate(all="ignore"):
                ratio = update.astype(np.float64) / weight
            least = best["update_ratio"].iloc[-1] if len(best) == most else 0.0
            best = _largest([best, _rows(batch, ratio, np.isfinite(ratio) & (ratio >= least), weights)], most)
            moved = np.isposinf(ratio) & np.isfinite(update)
            if moved.any() and len(zeros) < most:
                zeros = _largest([zeros, _rows(batch, ratio, moved, weights)], most)
        # Where many weights begin at zero (LoRA's), they mustn't hide the updates that replace something.
        first = zeros.head(max(most - len(best), most // 2))
        return _largest([first, best[~best["parameter"].isin(first["parameter"])]], most)

    found = source.trace.batches("layers", COLUMNS, largest, steps=source.steps_of_phase()).reset_index(drop=True)
    return found.astype({"step": "int64"})


def _rows(batch: pa.RecordBatch, ratio: Floats, chosen: NDArray[np.bool_], weights: set[str]) -> pd.DataFrame:
    """These rows of a batch, as far as they are of weights; of most batches hardly any are."""
    places = np.flatnonzero(chosen)
    frame = batch.take(places).to_pandas().astype({"parameter": str}).assign(update_ratio=ratio[places])
    return frame[frame["parameter"].isin(weights)]


def _largest(pieces: list[pd.DataFrame], most: int) -> pd.DataFrame:
    rows = pd.concat([piece for piece in pieces if len(piece)] or pieces[:1])
    ordered = rows.sort_values(["update_ratio", "step"], ascending=[False, True], kind="stable")
    return ordered.drop_duplicates("parameter").head(most)
