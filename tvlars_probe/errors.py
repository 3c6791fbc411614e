"""What goes wrong for users: each message says what was given, what is allowed, and the remedy.

The command line prints such an error as one line and exits with 2; from Python it is an ordinary exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(ValueError):
    """Something asked for can't be done as asked; nothing has been changed."""


class RunDirectoryError(UserError):
    """A run directory can't be created, read or written as asked."""


class DataError(UserError):
    """A data set is missing, damaged, or doesn't fit the settings."""


class TraceError(UserError):
    """A trace lacks what was asked of it, or a file of it is damaged."""


class UnreadableError(RunDirectoryError, TraceError):
    """The system refuses to read a file of a run: that doesn't mean that it is damaged."""


class LaterVersionError(RunDirectoryError, TraceError):
    """A file of a run is of a later version."""


class NonFiniteLossError(UserError):
    """The loss whose curvature is asked for is not finite."""


class InterruptedRunError(Exception):
    """A signal ended a run's processes.

    Attributes:
        signal: its number.
        advice: how to continue, in one line; empty where another process says it.
    """

    def __init__(self, signal: int, advice: str = "Interrupted: the same command continues") -> None:
        super().__init__(advice or f"ended by signal {signal}")
        self.signal = signal
        self.advice = advice


class RunFailedError(RuntimeError):
    """A run ended with an error of its own: what was recorded is kept."""


class StorageError(RunFailedError, OSError):
    """The run's files can't be written any more: what was complete stays readable."""


class ProbeError(RunFailedError):
    """A probe or a callback raised, and the run was to end with it."""


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that isn't one of the known ones."""
    return UserError(f"unknown {what} {given!r} (known: {', '.join(known)})")
