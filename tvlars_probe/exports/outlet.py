"""The way to one tracker while a run trains: a bounded queue, and a thread that empties it."""

from __future__ import annotations

import collections
import contextlib
import threading
import traceback
import warnings
from typing import TYPE_CHECKING

from tvlars_probe.exports.budget import TRACKERS
from tvlars_probe.exports.exporter import Alert

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tvlars_probe.exports.exporter import ExportedRun, Exporter
    from tvlars_probe.exports.selection import Selection

    Tables = Mapping[str, pa.Table]

MOST_WAITING = 16
"""Flushes that wait for a tracker."""

MOST_BYTES = 64 << 20
"""Bytes of the rows that wait for a tracker, beside those of the latest flush."""


def remedy(name: str) -> str:
    """How a tracker gets what it lacks."""
    command = f"'tvlars-probe export RUN --to {name}' sends it from the trace"
    return command if name in TRACKERS else "it is in the trace"


class Outlet:
    """Takes flushes from the training's thread, and hands what is chosen of them to an exporter in another.

    The training never waits: where a tracker is slower than the run, the oldest flushes that wait are dropped.

    Args:
        name: of the tracker, for messages.
        exporter: gets the values.
        selection: chooses them.
        facts: what the exporter is told of the run.

    Attributes:
        failure: why the export was switched off, in a sentence; None while it works.
        dropped: flushes that were dropped.
        given: flushes that were offered.
    """

    def __init__(self, name: str, exporter: Exporter, selection: Selection, facts: ExportedRun) -> None:
        self.name = name
        self.failure: str | None = None
        self.dropped = self.given = self._taken = 0
        self._exporter, self._selection, self._facts = exporter, selection, facts
        self._waiting: collections.deque[Tables] = collections.deque()
        self._change = threading.Condition()
        self._status: str | None = None
        self._abandoned = False
        # A daemon: a tracker that hangs must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._work, name=f"export to {name}", daemon=True)

    def start(self) -> None:
        """Begin the export, in the other thread.

        Raises:
            RuntimeError: the system gives no thread.
        """
        self._thread.start()

    def offer(self, tables: Tables) -> None:
        """Hand over a flush's rows."""
        with self._change:
            if not tables or self.failure is not None or self._status is not None:
                return
            self.given += 1
            self._waiting.append(tables)
            while len(self._waiting) > 1 and (
                len(self._waiting) > MOST_WAITING
                or sum(rows.nbytes for one in list(self._waiting)[:-1] for rows in one.values()) > MOST_BYTES
            ):
                self._waiting.popleft()
                self.dropped += 1
            self._change.notify()

    def close(self, status: str) -> None:
        """Let the exporter end, once it has taken what waits."""
        with self._change:
            self._status = status
            self._change.notify()

    def join(self, seconds: float) -> bool:
        """Wait for the exporter to end, for so long at most. Returns whether it has; if not, it gets nothing more."""
        if self._thread.ident is None:
            return True
        self._thread.join(max(0.0, seconds))
        with self._change:
            self._abandoned = self._thread.is_alive()
            return not self._abandoned

    @property
    def unsent(self) -> int:
        """Flushes of which not everything was sent."""
        return self.given - self._taken

    @property
    def left_out(self) -> str | None:
        """What the selection has left out, in a sentence."""
        return self._selection.left_out

    def _next(self) -> Tables | None:
        """The next flush; None when the run has ended and all are taken, or where nobody waits for the rest."""
        with self._change:
            while not self._waiting and self._status is None:
                self._change.wait()
            return self._waiting.popleft() if self._waiting and not self._abandoned else None

    def _work(self) -> None:
        try:
            self._exporter.begin(self._facts)
            while (tables := self._next()) is not None:
                self._send(tables)
            if not self._abandoned:
                if (text := self.left_out) is not None:
                    self._exporter.note(text)
                self._exporter.end(self._status or "interrupted")
        except BaseException as error:  # a tracker may even ask the interpreter to exit
            self.fail(error)

    def _send(self, tables: Tables) -> None:
        for item in self._selection.choose(tables):
            if self._abandoned:
                return
            self._exporter.alert(item) if isinstance(item, Alert) else self._exporter.scalars(item)
        self._exporter.flush()
        self._taken += 1

    def fail(self, error: BaseException) -> None:
        """Switch the export off, and warn of it."""
        reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        text = f"the export to {self.name} failed: {reason}; the run goes on without it; {remedy(self.name)}"
        with self._change:
            self.failure = text
            self._waiting.clear()
        # Here and not in the training's thread, where a warning that is an error would end the run.
        with contextlib.suppress(Warning):
            warnings.warn(text, RuntimeWarning, stacklevel=2)
