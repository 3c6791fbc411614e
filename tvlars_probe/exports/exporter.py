"""What a tracker is told of a run, and how: the interface of all exporters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tvlars_probe.errors import UserError
from tvlars_probe.findings.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """What a tracker is told of a run when its export begins.

    Attributes:
        run_id: stable name of what is exported: a resumed run has that of before, an export made afterwards another.
        name: name of the run directory.
        folder: where a tracker that writes files puts them; it need not exist.
        project: the project, or experiment, of the tracker that the run belongs to.
        config: the settings that the manifest keeps.
        tags: further facts: run_id, config_id, version.
        first_step: the step from which values are going to come; above 0 in a resumed run. What was sent of this step
            and later ones before it no longer holds.
    """

    run_id: str
    name: str
    folder: Path
    project: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    first_step: int = 0


@dataclass(frozen=True, slots=True)
class Alert(Finding):
    """A finding as trackers get it.

    Attributes:
        time: wall-clock time of the step in seconds since 1970 (UTC); None where it isn't known.
    """

    time: float | None = None


@dataclass(frozen=True, slots=True)
class StepScalars:
    """The values of one step.

    Attributes:
        step: the trace's step: the x-axis.
        values: by name, see `tvlars_probe.exports.names`; NaN and infinities are among them.
        time: wall-clock time of the step in seconds since 1970 (UTC); None where it isn't known.
    """

    step: int
    values: Mapping[str, float]
    time: float | None = None


@runtime_checkable
class Exporter(Protocol):
    """Sends a run to a tracker. One of your own can be given to `tvlars_probe.record` in ``export=``.

    All methods are called in one thread, which isn't the training's; what they raise switches the export off.
    """

    def begin(self, run: ExportedRun) -> None:
        """Begin, or go on with, the run of that id."""
        ...

    def scalars(self, point: StepScalars) -> None:
        """Take values of a step; steps come in ascending order, and one step may come more than once."""
        ...

    def alert(self, alert: Alert) -> None:
        """Take a finding."""
        ...

    def flush(self) -> None:
        """Let people see what was taken so far: the values of a flush are complete."""
        ...

    def note(self, text: str) -> None:
        """Take a text about the export: what was left out of it. Called once, before `end`."""
        ...

    def end(self, status: str) -> None:
        """Write what is still held back. ``status`` is the run's, one of `tvlars_probe.traces.manifest.STATUSES`."""
        ...


@runtime_checkable
class PreparesStore(Protocol):
    """An exporter that has to make a store before it can begin, which mustn't be cut short by the end of a run."""

    def prepare(self, run: ExportedRun) -> None:
        """Make the store, if it is a local one and isn't there; called before the training."""
        ...


@runtime_checkable
class RefusesExisting(Protocol):
    """An exporter that can tell whether a run is there already; all of our own can."""

    def refuse_existing(self, run: ExportedRun) -> None:
        """Refuse to write what is there.

        Raises:
            UserError: it is; the message says what to do.
        """
        ...


def refuse_folder(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        UserError: it does, or it is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds an export already: remove it, or give another folder by --out")
