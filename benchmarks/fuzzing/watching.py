"""How long a case takes, and how much memory: no case may take longer or more than is named here."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_SECONDS = 20.0
"""The longest that a case may take."""

MOST_BYTES = 1 << 30
"""The most memory that a case may take beside what the process had before."""

_ROOM = 6 << 30
"""Address space beside what the process has, beyond which it gets no memory: the machine is not to suffer."""


class TooLongError(BaseException):
    """A case took longer than it may. No command catches it."""


@dataclass
class Cost:
    """What a case took.

    Attributes:
        seconds: on the clock.
        memory: bytes in memory at its highest, beside those before.
    """

    seconds: float = 0.0
    memory: int = 0


@contextlib.contextmanager
def watched() -> Iterator[Cost]:
    """Measure the body, end it after `MOST_SECONDS`, and deny it memory far beyond `MOST_BYTES`.

    Linux alone tells the highest memory of a while; elsewhere none is told.
    """
    cost, before = Cost(), _status("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here on
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ROOM, limits[1]))
    handler = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    start = time.monotonic()
    try:
        yield cost
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        cost.seconds, cost.memory = time.monotonic() - start, max(_status("VmHWM") - before, 0)


def _end(*_: object) -> None:
    raise TooLongError


def _status(name: str) -> int:
    """Bytes of a figure in the system's account of this process; 0 where there is none."""
    try:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
