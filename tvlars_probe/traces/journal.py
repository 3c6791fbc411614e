"""The writing side of a run: its directory held, its manifest kept true, its tables appended to."""

from __future__ import annotations

import contextlib
import errno
import traceback
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.errors import StorageError, UserError
from tvlars_probe.traces.gaps import Gap, holes
from tvlars_probe.traces.manifest import Manifest, environment, now
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import LOCK_NAME, RunDirectory
from tvlars_probe.traces.schema import EPOCHS
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


_MOST_BOUNDARIES = 16


class Journal:
    """A run being written; one process holds it. Made by `create` or `resume`.

    Attributes:
        manifest: saved with every flush.
        boundaries: steps of the checkpoints kept; parts of the trace don't straddle them.
    """

    def __init__(self, directory: RunDirectory, manifest: Manifest) -> None:
        self._directory = directory
        self.path = directory.path
        self.manifest = manifest
        self.boundaries: Sequence[int] = ()
        self._writer = TraceWriter(self.path / "trace", manifest.run_id)

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Self:
        """Begin a run in a new folder.

        Raises:
            RunDirectoryError: something is there, or it can't be written.
        """
        return cls(RunDirectory.create(path), manifest)

    @classmethod
    def resume(cls, path: Path, manifest: Manifest, step: int, epochs_from: int | None = None) -> Self:
        """Continue a run after ``step`` updates; later rows are set aside, ``manifest`` takes over its history.

        Args:
            path: the run directory.
            manifest: of the run as it goes on.
            step: number of updates.
            epochs_from: as for `RunDirectory.cut_back`.

        Raises:
            RunDirectoryError: there is no run, another process writes to it, or it can't be written.
        """
        directory = RunDirectory.take_over(path)
        try:
            manifest.continue_from(Manifest.load(path), step)
            directory.cut_back(step, epochs_from)
            _note_lost(path, manifest, step)
        except BaseException:
            directory.release()
            raise
        journal = cls(directory, manifest)
        journal.boundaries = [step]
        return journal

    def end_parts_at(self, step: int) -> None:
        """Keep a state to which the run may be cut back: parts aren't merged across it. The last few are kept."""
        self.boundaries = sorted({*self.boundaries, step})[-_MOST_BOUNDARIES:]

    def begin_segment(self, first_step: int, **machine: Any) -> None:
        """Note where, when and with what this stretch of the run begins."""
        self.manifest.status = "running"
        self.manifest.segments.append({"first_step": first_step, "last_step": None, **environment(), **machine})
        with self.writing():
            self.manifest.save(self.path)

    def release(self) -> None:
        """Let go of the run as it is."""
        self._directory.release()

    def abandon(self) -> None:
        """Leave a run in which nothing was recorded; its directory goes too."""
        self._directory.abandon()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What happens inside writes into the run.

        Raises:
            StorageError: the directory has vanished, or the file system refuses.
        """
        if not self._directory.is_there:
            raise StorageError(
                f"{self.path} has vanished, its {LOCK_NAME} was removed, or another folder was put in its place: "
                f"recording has ended"
            )
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            when = "when there is room again, " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
            raise StorageError(
                f"can't write {error.filename or self.path}: {error.strerror or error}. What was complete stays "
                f"readable; {when}continue from the last checkpoint"
            ) from error

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Add rows to a table; see `TraceWriter.append`."""
        self._writer.append(table, columns)

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        """Add one row to the table ``epochs`` and keep it as the manifest's final metrics."""
        known = EPOCHS.names
        if strange := sorted({*row} - {*known}):
            raise UserError(f"the table epochs has no column {', '.join(strange)} (known: {', '.join(known)})")
        self._writer.append("epochs", {name: [value] for name, value in row.items() if value is not None})
        self.manifest.final = {name: value for name, value in row.items() if value is not None}
        accuracies = [a for a in (row.get("test_acc1"), self.manifest.best_test_acc1) if a is not None]
        self.manifest.best_test_acc1 = max(accuracies, default=None)

    @property
    def due(self) -> bool:
        """Whether it is time to flush."""
        return self._writer.due

    def flush(self, steps: int) -> None:
        """Write all rows and the manifest.

        Args:
            steps: updates made so far.
        """
        with self.writing():
            self._writer.flush(self.boundaries)
            segment = self.manifest.segments[-1]
            segment["last_step"] = steps - 1 if steps > segment["first_step"] else None
            segment["end"] = now().isoformat(timespec="seconds")
            self.manifest.save(self.path)

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Save the final status and let go of the directory.

        The parts of a run that has come to its end are compacted; one that was stopped will be continued, and is left
        as it is so that stopping is quick.
        """
        try:
            self.manifest.status = status
            if error is not None:
                self.manifest.notes.append("".join(traceback.format_exception_only(error)).strip())
            with self.writing():
                self.manifest.save(self.path)
                if status in ("completed", "diverged"):
                    self._writer.settle(self.boundaries)
        finally:
            self._directory.release()


def _note_lost(path: Path, manifest: Manifest, step: int) -> None:
    """Note as gaps the steps before ``step`` that no part of the trace holds and of which nothing says why."""
    spans = {
        table: [(part.first_step, part.last_step) for part in list_parts(path / "trace" / table)]
        for table in ("steps", "layers", "epochs")
    }
    known = [(gap.first_step, gap.end) for gap in manifest.gaps if gap.table == "steps"]
    for first, last in [*holes([*spans["steps"], *known], 0, step - 1)]:
        for table, held in spans.items():
            unknown = table == "epochs" and last < step - 1  # whether an epoch ended there
            if not unknown and not any(low <= last and high >= first for low, high in held):
                manifest.gaps.append(Gap(table, first, last, "not there when the run was continued"))
