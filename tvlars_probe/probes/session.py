"""A recorder's block from entering to leaving it: the journal that is held, and the status with which the run ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from typing import TYPE_CHECKING

from tvlars_probe.errors import StorageError, UserError
from tvlars_probe.probes.events.signals import children_may_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tvlars_probe.exports.live import LiveExports
    from tvlars_probe.probes.events.agreement import Agreement
    from tvlars_probe.traces.journal import Journal


class Session:
    """The time in which a recorder records.

    A process that is forked meanwhile has no part in it: the run is its parent's.

    Args:
        path: the run directory.
        exports: what trackers are sent of the run.

    Attributes:
        journal: the run's journal on rank 0; None on other ranks, and before `enter`.
        is_recording: whether the block has begun and not ended.
    """

    def __init__(self, path: Path, exports: LiveExports) -> None:
        self.path, self._exports = path, exports
        self.journal: Journal | None = None
        self.is_recording, self._pid = False, os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that records."""
        return os.getpid() != self._pid

    def refuse_idle(self) -> None:
        """Refuse to write where nothing is recorded.

        Raises:
            UserError: this is before or after the block, or in a forked child.
        """
        if self.is_forked:
            raise UserError("this process was forked from the one that records the run: record() another one here")
        if not self.is_recording:
            raise UserError("the recorder isn't recording: use it as 'with tvlars_probe.record(...) as rec:'")

    def enter(self, open_journal: Callable[[], Journal], agreement: Agreement, *, is_new: bool) -> None:
        """Open the journal on rank 0. Either all ranks enter, or none does: then a new run's directory is removed.

        Raises:
            RunDirectoryError: rank 0 couldn't open the journal.
            UserError: another rank didn't come in time.
        """
        try:
            with agreement.together():
                if agreement.ranks.is_first:
                    self.journal = open_journal()
        except BaseException:
            if self.journal is not None:
                self.journal.abandon() if is_new else self.journal.release()
                self.journal = None
            raise
        if self.journal is not None:
            self._exports.begin(self.journal)

    def begin(self, leave: Callable[[type[BaseException] | None, BaseException | None], None]) -> None:
        """Record from now on. If the block is never left, ``leave`` is called when the interpreter ends."""

        def at_exit() -> None:
            if not self.is_forked:  # a child inherits this registration
                # As if the block had raised: this rank writes what it has without the others, as interrupted.
                leave(SystemExit, None)
                warnings.warn(f"the recorder of {self.path} was never left: use it as a context manager", stacklevel=1)

        self.is_recording, self._at_exit = True, at_exit
        atexit.register(at_exit)

    def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        *,
        write: Callable[[], str],
        salvage: Callable[[], None],
        texts: Sequence[str] = (),
    ) -> None:
        """Write the remaining rows and note how the run ended.

        Args:
            kind: type of the exception that ends the block; None for none.
            error: that exception.
            write: writes all rows and returns the status; called where no exception ends the block.
            salvage: writes what this process has, without the other ranks; called where an exception does.
            texts: what to warn of.
        """
        atexit.unregister(self._at_exit)
        status = "failed" if kind is not None and issubclass(kind, Exception) else "interrupted"
        try:
            if kind is None:
                status = write()
            else:
                # Twice, because a data loader's signal handler may raise during the first attempt. What both raise is
                # dropped: the exception that ends the run is the one to see.
                for _ in range(2):
                    with contextlib.suppress(Exception):
                        salvage()
                        break
        # The last flush has failed, or a signal has interrupted it: that is how the run ends now.
        except BaseException as failure:
            status, error = "failed" if isinstance(failure, Exception) else "interrupted", failure
            raise
        finally:
            self.is_recording = False
            # Before the last word is written into the manifest: it tells what trackers lack.
            unsent: list[str] = []
            try:
                unsent = self._exports.end(status)
            finally:
                self._finish(status, error)
        for text, kind_of_warning in [*((t, UserWarning) for t in texts), *((t, RuntimeWarning) for t in unsent)]:
            warnings.warn(text, kind_of_warning, stacklevel=4)  # at the end, for a warning may be an error

    def _finish(self, status: str, error: BaseException | None) -> None:
        """Save the status. If that fails while an error is on its way, that error is the one that is raised."""
        if self.journal is None:
            return
        try:
            with children_may_wait():
                self.journal.finish(status, error if status == "failed" else None)
        except StorageError:
            if error is None:
                raise
