"""Ending a run early and in order: SIGINT and SIGTERM end it after the current step.

The first signal asks all ranks to stop in the same step, with a checkpoint. What a second signal does depends on who
started the process:

- A process that runs alone dies of it at once.
- A rank that another process of ours started ignores it, and so does a job of a scheduler: that process, or the
  scheduler, kills what doesn't end.
- A rank under torchrun dies of it, unless it comes within `ONE_SIGNAL_SECONDS`. torchrun hands on a signal that may
  have reached its whole process group already, so that is the first one again.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.runners.launching.torchrun import launched_by_torchrun
from tvlars_probe.traces.manifest import FILE_NAME

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType, TracebackType

    from tvlars_probe.probes.recorder import Recorder

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_SIGNAL_SECONDS = 1.0
"""Under torchrun, signals that come within this time are one."""

IS_CHILD = "TVLARS_PROBE_CHILD"
"""Environment variable of processes that another one kills if they don't end: the ranks that
`tvlars_probe.runners.launching.processes` starts, and the jobs of a sweep."""

JOB_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2) if hasattr(signal, "SIGUSR1") else ()
"""What schedulers send to all processes of a job before its time limit. A process that doesn't handle them dies."""


class StopSignals:
    """A context in which signals ask ``recorder`` to stop. Outside the main thread it does nothing.

    Attributes:
        received: the number of the first signal; None before it comes.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.received: int | None = None
        self._recorder = recorder
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python sets handlers only from the main thread.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._first) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A handler that wasn't set from Python reads as None, which can't be set again.
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _first(self, number: int, frame: FrameType | None) -> None:
        """Handle the first signal: ask for a stop, and decide what the next one does."""
        self.received, self._at = number, time.monotonic()
        self._recorder.request_stop()
        # A handler in Python would wait for a long operation to return; the system's own action comes at once.
        then: Any = signal.SIG_DFL
        if os.environ.get(IS_CHILD):
            then = signal.SIG_IGN  # Ctrl-C reaches a rank from the terminal and again from its parent
        elif launched_by_torchrun():
            then = self._second
        for one in SIGNALS:
            signal.signal(one, then)

    def _second(self, number: int, frame: FrameType | None) -> None:
        """Handle a later signal under torchrun."""
        if time.monotonic() - self._at < ONE_SIGNAL_SECONDS:
            return
        # Dying of the signal itself lets torchrun see from the exit code what happened.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    @property
    def number(self) -> int:
        """The number of the signal that ended the run; SIGTERM where only another rank received one."""
        return self.received or signal.SIGTERM


def advice(path: Path) -> str:
    """A line that says how to continue the run at ``path``, or that nothing was recorded where it hasn't begun."""
    if not (path / FILE_NAME).exists():
        return f"Interrupted before {path} began: nothing was recorded"
    return f"Interrupted; to continue: tvlars-probe train --resume {shlex.quote(str(path))}"
