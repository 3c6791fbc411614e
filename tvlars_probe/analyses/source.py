"""What the analyses read of a run: the facts, frames and matrices of one phase, only the columns asked for.

Commands, charts and the report all read runs through a `Source`, so that they agree on what belongs to a phase.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid, Rows
from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.traces.reader import Trace


MOST_VALUES = 125_000_000
"""The most values, of four bytes each, that matrices of ``layers`` may have: a little less than half a GiB."""


class Source:
    """One phase of a recorded run. Tables are read when they are asked for, and not kept.

    Args:
        trace: the run's trace.
        phase: name of the phase; by default the first.

    Attributes:
        trace: the run's trace.
        facts: what its manifest says of the phase, and whether `layers` has passed over steps.

    Raises:
        UserError: the run has no such phase.
    """

    def __init__(self, trace: Trace, phase: str | None = None) -> None:
        phases = trace.manifest.parameters
        if phase is not None and phases and phase not in phases:
            raise unknown(f"phase of {trace.path}", phase, phases)
        self.trace = trace
        self.facts = RunFacts.from_manifest(trace.manifest, name=trace.name, status=trace.status, phase=phase)

    @property
    def has_phases(self) -> bool:
        """Whether the run has several phases, so that the rows of one must be picked out."""
        return len(self.trace.manifest.parameters) > 1

    def lacks(self, table: str, column: str = "step") -> bool:
        """Whether a table holds no value in a column, in all phases. It is read up to the first value."""

        def is_empty(batches: Iterator[pa.RecordBatch]) -> bool:
            return all(batch.column(0).null_count == batch.num_rows for batch in batches)

        return self.trace.batches(table, [column], is_empty)

    def steps(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``steps`` of the phase."""
        rows = self._of_phase(self.trace.frame("steps", [*dict.fromkeys((*columns, "phase"))]))
        return rows.reset_index(drop=True)

    def epochs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of ``epochs``, of all phases: the accuracy of a pretrained model is that of its linear probe."""
        return self.trace.epochs(columns)

    def curvature(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``curvature`` of the phase."""
        return self._of_phase(self.trace.frame("curvature", [*dict.fromkeys((*columns, "phase"))]))

    def spectrum(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``spectrum`` of the phase that are densities of the whole model."""
        rows = self.trace.frame("spectrum", [*dict.fromkeys((*columns, "phase", "scope"))])
        return self._of_phase(rows[rows["scope"].astype(str) == "all"])

    def landscape(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``landscape``, of all phases: a slice belongs to a checkpoint, whatever the phase."""
        return self.trace.frame("landscape", columns)

    def layers(self, columns: Sequence[str], *, beside: int = 0) -> LayerGrid:
        """Rows of ``layers`` of the phase, as matrices in the order of the table of parameters.

        Where all would not fit in memory, steps at equal distances are passed over; ``facts.stride`` says so.

        Args:
            columns: the columns wanted.
            beside: how many columns the caller makes of them, which must be in memory as well.

        Raises:
            TraceError: a column isn't in the trace, or a few steps don't fit.
        """
        # The table has no column for the phase: the steps of the phase choose its rows.
        limits = None
        if self.has_phases:
            steps = self.steps(["step"])["step"]
            limits = (int(steps.min()), int(steps.max())) if len(steps) else (0, -1)
        wanted = [*dict.fromkeys(("step", "parameter", *columns))]
        order = [str(name) for name in self.facts.parameters["name"]]

        def arrange(batches: Iterator[pa.RecordBatch]) -> LayerGrid:
            # Called again from the start where parts are merged meanwhile: nothing may be kept between calls.
            pieces = (_rows(batch) if stride == 1 else _rows(batch).of(recorded) for batch in batches)
            most = MOST_VALUES // max(len(recorded) * (len(wanted) - 2 + beside), 1)
            return LayerGrid.from_rows(pieces, recorded, order, wanted[2:], most_tensors=max(most, len(order)))

        # Two passes: the matrices can't be laid out before all steps are known, and the rows themselves are never held.
        recorded, rows = self.trace.batches("layers", ["step"], _distinct_steps, steps=limits)
        tensors = max(len(order), rows // max(len(recorded), 1))
        stride = -(-tensors * len(recorded) * (len(wanted) - 2 + beside) // MOST_VALUES) or 1
        recorded = recorded[::stride]
        self.facts = dataclasses.replace(self.facts, stride=max(stride, self.facts.stride))
        # A run that is being recorded goes on meanwhile: steps that came after the first pass are left out.
        until_now = (int(recorded[0]), int(recorded[-1])) if len(recorded) else (0, -1)
        return self.trace.batches("layers", wanted, arrange, steps=until_now)

    def _of_phase(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["phase"].astype(str) == self.facts.phase] if self.has_phases else rows


def _distinct_steps(batches: Iterator[pa.RecordBatch]) -> tuple[NDArray[np.int64], int]:
    """The steps that occur in the batches, ascending, and the number of rows."""
    found, rows = list[Any](), 0
    for batch in batches:
        found.append(np.unique(batch.column(0).to_numpy()))
        rows += len(batch)
    # The empty array: concatenate refuses an empty list.
    return np.unique(np.concatenate([*found, np.empty(0, np.int64)])).astype(np.int64), rows


def _rows(batch: pa.RecordBatch) -> Rows:
    """A batch as NumPy arrays."""
    names: Any = batch.column("parameter")
    others = [name for name in batch.schema.names if name not in ("step", "parameter")]
    return Rows(
        batch.column("step").to_numpy(),
        names.indices.to_numpy(),
        names.dictionary.to_pylist(),
        # A column with nulls can't share Arrow's memory: the copy has NaN in their place.
        {name: batch.column(name).to_numpy(zero_copy_only=False) for name in others},
    )
