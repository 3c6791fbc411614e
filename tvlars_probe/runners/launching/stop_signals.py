"""Ending a run early and in order: SIGINT and SIGTERM end it after the current step.

The first signal asks all ranks to stop in the same step, with a checkpoint. Who started the ranks decides what a second
one does: alone, the process dies of it at once; ranks that another process of ours started leave that to it; under
torchrun, which hands on what its whole process group has got already, a second one within `ONE_SIGNAL_SECONDS` is the
same one again.
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

IS_CHILD = "TVLARS_PROBE_CHILD"
"""Set in the environment of ranks that `tvlars_probe.runners.launching.processes` started."""


class StopSignals:
    """While entered, signals ask ``recorder`` to stop; outside the main thread it does nothing.

    Attributes:
        received: the first signal, if any.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.received: int | None = None
        self._recorder = recorder
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._first) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.received, self._at = number, time.monotonic()
        self._recorder.request_stop()
        # The system's own action needs no Python to run: it comes at once even inside a long operation.
        then: Any = signal.SIG_DFL
        if os.environ.get(IS_CHILD):
            then = signal.SIG_IGN
        elif launched_by_torchrun():
            then = self._second
        for one in SIGNALS:
            signal.signal(one, then)

    def _second(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._at < ONE_SIGNAL_SECONDS:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    @property
    def number(self) -> int:
        """The signal that ended the run; SIGTERM where another rank got it."""
        return self.received or signal.SIGTERM


def advice(path: Path) -> str:
    """How to continue the run at ``path``, in a line; where it hasn't begun, that nothing is there."""
    if not (path / FILE_NAME).exists():
        return f"Interrupted before {path} began: nothing was recorded"
    return f"Interrupted; to continue: tvlars-probe train --resume {shlex.quote(str(path))}"
