"""What the analyses read of a run: the facts, frames and matrices of one phase, only the columns asked for.

Commands, charts and the report all read runs through a `Source`, so that they agree on what belongs to a phase.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.analyses.batches.noise_of_tensors import COLUMNS as TENSOR_COLUMNS
from tvlars_probe.analyses.batches.noise_of_tensors import TensorSums
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid, Rows
from tvlars_probe.errors import TraceError, unknown
from tvlars_probe.traces.datasets import distinct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.traces.reader import Trace


MOST_VALUES = 125_000_000
"""The most values, of four bytes each, that matrices of ``layers`` may have: a little less than half a GiB."""

MOST_STEPS = 1 << 20
"""The most recorded steps of ``layers``: an analysis makes some sixty columns of doubles of each tensor."""

MOST_UPDATES = 1 << 21
"""The most rows of ``steps``, but for those that are kept whatever their number."""

EARLY_UPDATES = 1 << 18
"""The first rows of ``steps``, which are all kept: early steps decide on warm-up."""

MOST_ROWS = 1 << 20
"""The most rows of any other table. The figures of 30,000 tensors at thirty checkpoints have as many."""


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

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate of the phase's first parameter group: as planned, or else the highest recorded."""
        if self.facts.peak_lr is not None:
            return self.facts.peak_lr
        highest = self._sampled_steps(["lr"])[0]["lr"].max()
        return self.facts.lr if highest != highest else float(highest)  # no row has any

    def lacks(self, table: str, column: str = "step") -> bool:
        """Whether a table holds no value in a column, in all phases. It is read up to the first value."""

        def is_empty(batches: Iterator[pa.RecordBatch]) -> bool:
            return all(batch.column(0).null_count == batch.num_rows for batch in batches)

        return self.trace.batches(table, [column], is_empty)

    def steps(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``steps`` of the phase.

        Of more than `MOST_UPDATES` the later ones at equal distances are kept, and those with the highest losses;
        ``facts.stride`` says so.
        """
        rows, stride = self._sampled_steps(columns)
        self.facts = dataclasses.replace(self.facts, stride=max(stride, self.facts.stride))
        return rows

    def epochs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of ``epochs``, of all phases: the accuracy of a pretrained model is that of its linear probe."""
        return self._frame("epochs", columns)

    def curvature(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``curvature`` of the phase."""
        return self._of_phase(self._frame("curvature", [*dict.fromkeys((*columns, "phase"))]))

    def spectrum(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``spectrum`` of the phase that are densities of the whole model."""
        rows = self._frame("spectrum", [*dict.fromkeys((*columns, "phase", "scope"))])
        return self._of_phase(rows[rows["scope"].astype(str) == "all"])

    def noise(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``noise`` of the phase that are of the whole model, in order of steps.

        Raises:
            TraceError: there are more than `MOST_UPDATES`.
        """
        wanted = [*dict.fromkeys((*columns, "step", "phase", "scope_kind"))]

        def whole(batches: Iterator[pa.RecordBatch]) -> pd.DataFrame:
            # Rows of tensors are hundreds of times as many: they are passed over batch by batch.
            kept, seen = [self.trace.frame("noise", wanted, steps=(0, -1))], 0
            for batch in batches:
                rows = batch.to_pandas()
                kept.append(self._of_phase(rows[rows["scope_kind"].astype(str) == "all"]))
                if (seen := seen + len(kept[-1])) > MOST_UPDATES:
                    raise TraceError(
                        f"the table noise of {self.trace.path} has more than {MOST_UPDATES:,} rows of the whole model: "
                        f"move parts out of its folder, or read some steps of it in Python (tvlars_probe.open_run)"
                    )
            filled = [rows for rows in kept if len(rows)] or kept[:1]
            return pd.concat(filled, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)

        import pandas as pd

        return self.trace.batches("noise", wanted, whole)[list(columns)]

    def noise_of_tensors(self, firsts: NDArray[np.int64]) -> pd.DataFrame:
        """Each tensor's noise over windows of steps that begin at ``firsts``; its rows are never all in memory."""
        phase = self.facts.phase if self.has_phases else None
        # Sums begin anew where parts are merged meanwhile.
        return self.trace.batches("noise", TENSOR_COLUMNS, lambda b: TensorSums(firsts, phase).add(b).frame())

    def landscape(self, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of ``landscape``, of all phases: a slice belongs to a checkpoint, whatever the phase."""
        return self._frame("landscape", columns)

    def layers(self, columns: Sequence[str], *, beside: int = 0) -> LayerGrid:
        """Rows of ``layers`` of the phase, as matrices in the order of the table of parameters.

        Where all would not fit in memory, or are more than `MOST_STEPS`, steps at equal distances are passed over;
        ``facts.stride`` says so.

        Args:
            columns: the columns wanted.
            beside: how many columns the caller makes of them, which must be in memory as well.

        Raises:
            TraceError: a column isn't in the trace, or a few steps don't fit.
        """
        limits = self.steps_of_phase()
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
        stride = max(stride, -(-len(recorded) // MOST_STEPS))
        recorded = recorded[::stride]
        self.facts = dataclasses.replace(self.facts, stride=max(stride, self.facts.stride))
        # A run that is being recorded goes on meanwhile: steps that came after the first pass are left out.
        until_now = (int(recorded[0]), int(recorded[-1])) if len(recorded) else (0, -1)
        return self.trace.batches("layers", wanted, arrange, steps=until_now)

    def steps_of_phase(self) -> tuple[int, int] | None:
        """The first and the last recorded step of the phase; None where the run has no other phase.

        The table ``layers`` has no column for the phase: steps choose its rows.
        """
        if not self.has_phases:
            return None
        steps = self._sampled_steps(["step"])[0]["step"]
        return (int(steps.min()), int(steps.max())) if len(steps) else (0, -1)

    def _frame(self, table: str, columns: Sequence[str] | None) -> pd.DataFrame:
        """Rows of a table that no training makes long.

        Raises:
            TraceError: it has more than `MOST_ROWS`: a part of a few kilobytes may hold millions.
        """
        if (rows := self.trace.count_rows(table)) > MOST_ROWS:
            raise TraceError(
                f"the table {table} of {self.trace.path} has {rows:,} rows, of {MOST_ROWS:,} that can be analysed: "
                f"move parts out of its folder, or read some steps of it in Python (tvlars_probe.open_run)"
            )
        return self.trace.frame(table, columns)

    def _sampled_steps(self, columns: Sequence[str]) -> tuple[pd.DataFrame, int]:
        """Rows of ``steps`` of the phase as `steps` says, and the distance of those that are kept."""
        wanted = [*dict.fromkeys((*columns, "step", "phase"))]
        stride = -(-self.trace.count_rows("steps") // MOST_UPDATES)
        if stride <= 1:
            return self._of_phase(self.trace.frame("steps", wanted)).reset_index(drop=True), 1

        def sample(batches: Iterator[pa.RecordBatch]) -> pd.DataFrame:
            kept, seen = list[Any](), 0
            for batch in batches:
                rows = self._of_phase(batch.to_pandas()).drop(columns="phase")
                if len(rows):
                    kept.append(rows[_kept(rows, seen, stride, self.facts.bad_loss_step)])
                    seen += len(rows)
            # An empty table where the phase has no rows.
            return pd.concat(kept, ignore_index=True) if kept else self.trace.frame("steps", wanted, steps=(0, -1))

        import pandas as pd

        return self.trace.batches("steps", wanted, sample), stride

    def _of_phase(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["phase"].astype(str) == self.facts.phase] if self.has_phases else rows


def _kept(rows: pd.DataFrame, before: int, stride: int, bad: int | None) -> NDArray[np.bool_]:
    """Which rows of a piece of ``steps`` are kept where there are too many.

    Args:
        rows: the piece, in order of steps.
        before: number of rows that came before it.
        stride: the distance of the rows that are kept.
        bad: the step whose loss isn't finite, by the manifest.
    """
    at = np.arange(before, before + len(rows))
    kept: NDArray[np.bool_] = (at < EARLY_UPDATES) | (at % stride == 0) | (rows["step"] == bad).to_numpy()
    kept[-1] = True
    if "loss" in rows:
        # The first one of the piece's highest: with it the run's highest is kept, and the first that is infinite.
        kept[int(rows["loss"].fillna(-np.inf).to_numpy().argmax())] = True
    return kept


def _distinct_steps(batches: Iterator[pa.RecordBatch]) -> tuple[NDArray[np.int64], int]:
    """The steps that occur in the batches, ascending, and the number of rows."""
    found, rows = list[Any](), 0
    for batch in batches:
        found.append(distinct(batch.column(0).to_numpy()))
        rows += len(batch)
    # The empty array: concatenate refuses an empty list.
    return distinct(np.concatenate([*found, np.empty(0, np.int64)])).astype(np.int64), rows


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
