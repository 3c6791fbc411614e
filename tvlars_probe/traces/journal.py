"""The writing side of a run: it holds the run directory, saves the manifest, and adds rows to the tables."""

from __future__ import annotations

import contextlib
import errno
import traceback
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.errors import StorageError, UserError
from tvlars_probe.traces.environment import environment
from tvlars_probe.traces.gaps import Gap, holes
from tvlars_probe.traces.manifest import Manifest, now
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import LOCK_NAME, RunDirectory
from tvlars_probe.traces.schema import EPOCHS
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa


_MOST_BOUNDARIES = 16
"""How many steps, the latest ones, `Journal.end_parts_at` remembers."""


class Journal:
    """A run that is being written, and that one process holds. `create` and `resume` make it.

    Attributes:
        path: the run directory.
        manifest: the run's manifest, saved with every flush.
        boundaries: steps of the checkpoints kept; merging makes no part that straddles one.
        listeners: called with the rows of each flush, by table, once they are on disk. They must not raise or wait.
    """

    def __init__(self, directory: RunDirectory, manifest: Manifest) -> None:
        self._directory = directory
        self.path = directory.path
        self.manifest = manifest
        self.boundaries: Sequence[int] = ()
        self.listeners: list[Callable[[Mapping[str, pa.Table]], None]] = []
        self._writer = TraceWriter(self.path / "trace", manifest.run_id)

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Self:
        """Begin a run in a new folder.

        Raises:
            RunDirectoryError: something is there already, or the folder can't be written.
        """
        return cls(RunDirectory.create(path), manifest)

    @classmethod
    def resume(cls, path: Path, manifest: Manifest, step: int, epochs_from: int | None = None) -> Self:
        """Continue a run after ``step`` updates. Later rows are set aside.

        Args:
            path: the run directory.
            manifest: the manifest from now on; it takes over the history of the one that is there.
            step: number of updates that the run keeps.
            epochs_from: as for `RunDirectory.cut_back`.

        Raises:
            RunDirectoryError: there is no run, another process writes to it, or it can't be written.
            TraceError: a part that must be split is damaged.
        """
        directory = RunDirectory.take_over(path)
        try:
            manifest.continue_from(Manifest.load(path), step)
            # run.json is saved only later (`begin_segment`). A kill in between leaves a run.json that names steps which
            # are set aside; a check recognises that by the folder which the cut makes in aside/.
            directory.cut_back(step, epochs_from)
            _note_lost(path, manifest, step)
        except BaseException:
            directory.release()
            raise
        journal = cls(directory, manifest)
        journal.boundaries = [step]
        return journal

    def end_parts_at(self, step: int) -> None:
        """Keep parts from being merged across ``step``, a state to which the run may be cut back.

        Only the last `_MOST_BOUNDARIES` such steps count.
        """
        # The cut then moves whole parts and has none to split.
        self.boundaries = sorted({*self.boundaries, step})[-_MOST_BOUNDARIES:]

    def begin_segment(self, first_step: int, **machine: Any) -> None:
        """Note in the manifest where and when this stretch of the run begins, and on what machine.

        Args:
            first_step: the first step of the stretch.
            machine: further facts: device, threads, ranks.
        """
        self.manifest.status = "running"
        self.manifest.segments.append({"first_step": first_step, "last_step": None, **environment(), **machine})
        with self.writing():
            self.manifest.save(self.path)

    def release(self) -> None:
        """Let go of the run and leave it as it is."""
        self._directory.release()

    def abandon(self) -> None:
        """Let go of a run in which nothing was recorded, and remove its directory."""
        self._directory.abandon()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Guard a block that writes into the run.

        Raises:
            StorageError: the directory has vanished, or the file system refuses a write.
        """
        if not self._directory.is_there:
            raise StorageError(
                f"{self.path} has vanished, its {LOCK_NAME} was removed, or another folder was put in its place: "
                f"recording has ended"
            )
        try:
            yield
        except StorageError:  # an OSError too, whose message is complete
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
        """Add one row to the table ``epochs``, and keep it as the manifest's final metrics.

        Raises:
            UserError: the table has no such column.
        """
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
            # Rows before the manifest: whatever step run.json names is on disk in all tables.
            written = self._writer.flush(self.boundaries)
            segment = self.manifest.segments[-1]
            segment["last_step"] = steps - 1 if steps > segment["first_step"] else None
            segment["end"] = now().isoformat(timespec="seconds")
            self.manifest.save(self.path)
        for listener in self.listeners:
            listener(written)

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Save the final status and let go of the directory.

        A run that has come to its end is compacted. One that was stopped will be continued: its parts are left as they
        are, which makes stopping quick.

        Args:
            status: one of `tvlars_probe.traces.manifest.STATUSES`.
            error: what ended the run; the manifest notes it.
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
    """Note as gaps the steps before ``step`` that no part of the trace holds, unless the manifest accounts for them."""
    # The parts' names are enough: no row is read.
    spans = {
        table: [(part.first_step, part.last_step) for part in list_parts(path / "trace" / table)]
        for table in ("steps", "layers", "epochs")
    }
    # The table steps has a row for every step, so its holes are losses. In layers a hole may mean that nothing was due.
    known = [(gap.first_step, gap.end) for gap in manifest.gaps if gap.table == "steps"]
    for first, last in [*holes([*spans["steps"], *known], 0, step - 1)]:
        for table, held in spans.items():
            # Within the trace nothing tells whether an epoch ended in the hole.
            unknown = table == "epochs" and last < step - 1
            if not unknown and not any(low <= last and high >= first for low, high in held):
                manifest.gaps.append(Gap(table, first, last, "not there when the run was continued"))
