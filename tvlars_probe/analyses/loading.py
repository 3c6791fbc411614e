"""From a run to what an analysis takes: facts, grids and frames of one phase, columns projected."""

from __future__ import annotations

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

    from tvlars_probe.traces.reader import Run


def facts_of(run: Run, phase: str | None = None) -> RunFacts:
    """The facts of a run and one of its phases, the first by default.

    Raises:
        UserError: the run has no such phase.
    """
    phases = run.manifest.parameters
    if phase is not None and phases and phase not in phases:
        raise unknown(f"phase of {run.path}", phase, phases)
    return RunFacts.from_manifest(run.manifest, name=run.name, status=run.status, phase=phase)


def steps_of(run: Run, facts: RunFacts, columns: Sequence[str]) -> pd.DataFrame:
    """Rows of ``steps`` of the phase."""
    return _of_phase(run, facts, "steps", columns)


def epochs_of(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of ``epochs``, of all phases: accuracies of a pretrained model are those of its linear probe."""
    return run.epochs(columns)


def grid_of(run: Run, facts: RunFacts, columns: Sequence[str]) -> LayerGrid:
    """Rows of ``layers`` of the phase, as matrices in the order of the table of parameters.

    Raises:
        TraceError: a column isn't in the trace.
    """
    limits = None
    if len(run.manifest.parameters) > 1:
        steps = steps_of(run, facts, ["step"])["step"]
        limits = (int(steps.min()), int(steps.max())) if len(steps) else (0, -1)
    wanted = [*dict.fromkeys(("step", "parameter", *columns))]
    order = [str(name) for name in facts.parameters["name"]]

    def arrange(batches: Iterator[pa.RecordBatch]) -> LayerGrid:
        return LayerGrid.from_rows(map(_rows, batches), recorded, order, wanted[2:])

    recorded = run.batches("layers", ["step"], _distinct_steps, steps=limits)
    # A run that is being recorded goes on meanwhile: what came after is left out.
    until_now = (int(recorded[0]), int(recorded[-1])) if len(recorded) else (0, -1)
    return run.batches("layers", wanted, arrange, steps=until_now)


def _distinct_steps(batches: Iterator[pa.RecordBatch]) -> NDArray[np.int64]:
    found = [np.unique(batch.column(0).to_numpy()) for batch in batches]
    return np.unique(np.concatenate([*found, np.empty(0, np.int64)])).astype(np.int64)


def _rows(batch: pa.RecordBatch) -> Rows:
    """A batch as numbers; null becomes NaN."""
    names: Any = batch.column("parameter")
    others = [name for name in batch.schema.names if name not in ("step", "parameter")]
    return Rows(
        batch.column("step").to_numpy(),
        names.indices.to_numpy(),
        names.dictionary.to_pylist(),
        {name: batch.column(name).to_numpy(zero_copy_only=False) for name in others},
    )


def _of_phase(run: Run, facts: RunFacts, table: str, columns: Sequence[str] | None) -> pd.DataFrame:
    wanted = None if columns is None else [*dict.fromkeys((*columns, "phase"))]
    frame = run.frame(table, wanted)
    if len(run.manifest.parameters) > 1:
        frame = frame[frame["phase"].astype(str) == facts.phase]
    return frame.reset_index(drop=True)
