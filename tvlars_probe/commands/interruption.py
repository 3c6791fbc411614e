"""Ctrl-C in a command that takes long: one line that says what is kept, and how to go on."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from tvlars_probe.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C and a signal that ends a rank end the command with one line.

    Args:
        advice: makes that line once it is needed: it may look at what was written until then.

    Raises:
        InterruptedRunError: the command was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        number = int(signal.SIGINT)
    except InterruptedRunError as error:
        number = error.signal
    else:
        return
    raise InterruptedRunError(number, advice()) from None
