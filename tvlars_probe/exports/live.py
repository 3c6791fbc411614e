"""The exports of a run while it trains: they listen to its journal, and never hold it up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.names import encodable
from tvlars_probe.exports.exporter import ExportedRun, PreparesStore
from tvlars_probe.exports.outlet import Outlet, remedy
from tvlars_probe.exports.selection import Selection
from tvlars_probe.exports.settings import exports_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.exports.exporter import Exporter
    from tvlars_probe.exports.settings import Export
    from tvlars_probe.traces.journal import Journal
    from tvlars_probe.traces.manifest import Manifest

END_SECONDS = 5.0
"""How long the end of a run waits for all its trackers together."""


class LiveExports:
    """All exports of a recorded run.

    Args:
        given: names of trackers, `Export` settings, or exporters of somebody's own.
        opens: whether this process writes the run: then the trackers' packages are imported.

    Raises:
        UserError: an unknown tracker, a setting outside its range, or a missing package.
    """

    def __init__(self, given: Sequence[str | Export | Exporter] | str | Export, *, opens: bool) -> None:
        self._exports = exports_of(given)
        # Imported before the training: the import of a tracker takes seconds.
        self._exporters = [export.open() for export in self._exports] if opens else []
        self._outlets: list[Outlet] = []
        self._manifest: Manifest | None = None

    def begin(self, journal: Journal) -> None:
        """Listen to a journal that has begun a segment."""
        self._manifest = journal.manifest
        for export, exporter in zip(self._exports, self._exporters, strict=True):
            facts = facts_of(
                export, journal.path, journal.manifest, first_step=journal.manifest.segments[-1]["first_step"]
            )
            outlet = Outlet(export.name, exporter, Selection(export.layers, export.budget), facts)
            try:
                if isinstance(exporter, PreparesStore):
                    exporter.prepare(facts)
                outlet.start()
            except Exception as error:  # the tracker's own, or no thread is to be had
                outlet.fail(error)
                self._note(str(outlet.failure))
                continue
            self._outlets.append(outlet)
        if self._outlets:
            journal.listeners.append(self._take)

    def end(self, status: str) -> list[str]:
        """Let the exports end. It takes `END_SECONDS` at most.

        Returns:
            what to warn of: what trackers have not been sent.
        """
        deadline, texts = time.monotonic() + END_SECONDS, []
        for outlet in self._outlets:
            outlet.close(status)
        for outlet in self._outlets:
            ended = outlet.join(deadline - time.monotonic())
            if outlet.failure is not None:
                self._note(outlet.failure)
            elif not ended:
                texts.append(
                    f"{outlet.name} was still at work {END_SECONDS:g} s after the run's end: of {outlet.given} flushes "
                    f"{outlet.unsent} weren't sent whole; {remedy(outlet.name)}"
                )
            elif outlet.dropped:
                texts.append(
                    f"{outlet.name} was slower than the run: of {outlet.given} flushes {outlet.dropped} weren't sent; "
                    f"{remedy(outlet.name)}"
                )
            elif (left_out := outlet.left_out) is not None:
                self._note(f"export to {outlet.name}: {left_out}")
        for text in texts:
            self._note(text)
        self._outlets = []
        return texts

    def _take(self, tables: Mapping[str, pa.Table]) -> None:
        for outlet in self._outlets:
            outlet.offer(tables)
            if outlet.failure is not None:
                self._note(outlet.failure)

    def _note(self, text: str) -> None:
        # A resumed run has the notes of before.
        if self._manifest is not None and text not in self._manifest.notes:
            self._manifest.notes.append(text)


def facts_of(export: Export, path: Path, manifest: Manifest, *, first_step: int = 0, suffix: str = "") -> ExportedRun:
    """What a tracker is told of a run.

    Args:
        export: the settings.
        path: the run directory.
        manifest: of the run.
        first_step: the step from which values come.
        suffix: what an export that is made afterwards has behind the run's id and its folder.
    """
    known: dict[str, Any] = {
        "run_id": manifest.run_id,
        "config_id": manifest.config_id,
        "version": manifest.segments[-1].get("tvlars_probe") if manifest.segments else None,
        "created": manifest.created,
    }
    return ExportedRun(
        run_id=f"{manifest.run_id}{suffix}",
        name=encodable(path.absolute().name),
        folder=export.folder or path / "exports" / f"{export.name}{suffix}",
        project=export.project,
        config=manifest.config,
        tags={name: str(value) for name, value in known.items() if value is not None},
        first_step=first_step,
    )
