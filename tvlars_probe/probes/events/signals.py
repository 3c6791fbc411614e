"""Keeps signal handlers that raise out of code in which rows would be lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def children_may_wait() -> Iterator[None]:
    """Put off the handling of SIGCHLD to the end of the block: torch's data loaders raise in that handler.

    Outside the main thread, and where Python handles no SIGCHLD, nothing is put off.
    """
    # Only the main thread may set handlers, and Windows has no SIGCHLD.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main and hasattr(signal, "SIGCHLD") else None
    # SIG_DFL, SIG_IGN and None, which stands for a handler from outside Python, can't be called from here.
    if not callable(handler):
        yield
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
        # Once for all: torch's handler looks at every worker of every loader.
        if came:
            handler(*came[0])
