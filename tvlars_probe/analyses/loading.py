"""From a run to what an analysis takes: facts, grids and frames of one phase, columns projected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

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
    frame = run.layers(wanted, steps=limits)
    return LayerGrid.from_frame(frame, order=[str(name) for name in facts.parameters["name"]])


def _of_phase(run: Run, facts: RunFacts, table: str, columns: Sequence[str] | None) -> pd.DataFrame:
    wanted = None if columns is None else [*dict.fromkeys((*columns, "phase"))]
    frame = run.frame(table, wanted)
    if len(run.manifest.parameters) > 1:
        frame = frame[frame["phase"].astype(str) == facts.phase]
    return frame.reset_index(drop=True)
