"""From entering a recorder's block to leaving it: the journal held, and what the run's end is called."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from typing import TYPE_CHECKING

from tvlars_probe.errors import RunDirectoryError, StorageError, UserError
from tvlars_probe.probes.events.signals import children_may_wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvlars_probe.probes.events.agreement import Agreement
    from tvlars_probe.traces.journal import Journal


class Session:
    """The time in which a recorder records.

    A process forked meanwhile has no part in it: the run is its parent's.

    Args:
        path: the run directory.

    Attributes:
        journal: the writing side, None on ranks other than 0.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal: Journal | None = None
        self._is_recording, self._pid = False, os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that records."""
        return os.getpid() != self._pid

    def refuse_idle(self) -> None:
        """Refuse to write where nothing is recorded: before and after the block, and in a forked child."""
        if self.is_forked:
            raise UserError("this process was forked from the one that records the run: record() another one here")
        if not self._is_recording:
            raise UserError("the recorder isn't recording: use it as 'with tvlars_probe.record(...) as rec:'")

    def enter(self, open_journal: Callable[[], Journal], agreement: Agreement) -> None:
        """Open the journal on rank 0; all ranks go in, or none.

        Raises:
            RunDirectoryError: rank 0 can't record there.
            UserError: the other ranks don't come.
        """
        failure: Exception | None = None
        if agreement.ranks.is_first:
            try:
                self.journal = open_journal()
            except Exception as error:
                failure = error
        if agreement.enter(failure is not None):
            raise failure or RunDirectoryError(f"rank 0 can't record into {self.path}")

    def begin(self, leave: Callable[[type[BaseException] | None, BaseException | None], None]) -> None:
        """Record from now on; ``leave`` is called when the interpreter ends, if the block was never left."""

        def at_exit() -> None:
            if not self.is_forked:
                warnings.warn(f"the recorder of {self.path} was never left: use it as a context manager", stacklevel=1)
                leave(SystemExit, None)

        self._is_recording, self._at_exit = True, at_exit
        atexit.register(at_exit)

    def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        *,
        write: Callable[[], str],
        salvage: Callable[[], None],
    ) -> None:
        """Write what is left and note how the run ended.

        Args:
            kind: of the exception that ends it; None for none.
            error: the exception.
            write: writes all rows and says the status.
            salvage: writes what this process has, where an exception ends the run.
        """
        atexit.unregister(self._at_exit)
        status = "failed" if kind is not None and issubclass(kind, Exception) else "interrupted"
        try:
            if kind is None:
                status = write()
            else:
                for _ in range(2):  # what a data loader's signal handler has to say may come in the middle of the first
                    with contextlib.suppress(Exception):
                        salvage()
                        break
        except BaseException as failure:
            status, error = "failed" if isinstance(failure, Exception) else "interrupted", failure
            raise
        finally:
            self._is_recording = False
            self._finish(status, error)

    def _finish(self, status: str, error: BaseException | None) -> None:
        """Save the status; where even that can't be written, the error that is on its way stands."""
        if self.journal is None:
            return
        try:
            with children_may_wait():
                self.journal.finish(status, error if status == "failed" else None)
        except StorageError:
            if error is None:
                raise
