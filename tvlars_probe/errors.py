"""The errors that users meet: each message says what was given, what is allowed, and the remedy.

The command line prints such an error as one line. Its exit code is 2 for a `UserError`, 1 for a `RunFailedError`, and
128 plus the signal's number for an `InterruptedRunError`. From Python they are ordinary exceptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class UserError(ValueError):
    """Something asked for can't be done as asked; nothing has been changed."""


class RunDirectoryError(UserError):
    """A run directory can't be created, read or written as asked."""


class RunHeldError(RunDirectoryError):
    """Another process holds a run directory: it can be had when that process is done."""


class RefusedFileError(UserError):
    """A file is no plain file, or would cost more memory or time than it may.

    Attributes:
        reason: what is wrong with it, without its name.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path} is refused: {reason}")
        self.reason = reason


class DataError(UserError):
    """A data set is missing, damaged, or doesn't fit the settings."""


class TraceError(UserError):
    """A trace lacks what was asked of it, or a file of it is damaged."""


class NothingToShowError(TraceError):
    """A chart would be empty: the rows that it is drawn from hold no value with a place in it."""


class MissingExtraError(UserError, ImportError):
    """A package isn't installed that an extra of tvlars-probe brings."""


# The next two are errors of a manifest as well as of a part: whoever catches either of the two bases catches them.
class UnreadableError(RunDirectoryError, TraceError):
    """The system refuses to read a file of a run; that doesn't mean that the file is damaged."""


class LaterVersionError(RunDirectoryError, TraceError):
    """A file of a run has a later schema version than this tvlars-probe reads."""


class NonFiniteLossError(UserError):
    """The loss whose curvature is asked for is not finite."""


class InterruptedRunError(Exception):
    """A signal ended a run's processes.

    Attributes:
        signal: the signal's number.
        advice: one line that says how to continue; empty where another process prints it.
    """

    def __init__(self, signal: int, advice: str = "Interrupted: the same command goes on") -> None:
        super().__init__(advice or f"ended by signal {signal}")
        self.signal = signal
        self.advice = advice


class RunFailedError(RuntimeError):
    """A run ended with an error of its own; what was recorded is kept."""


class StoppedOnFinding(Exception):  # noqa: N818 (no error: the loop ends as its owner has asked)
    """A rule of ``stop_on`` has found something: `Recorder.log` raises this on all ranks to leave the loop.

    The recorder's ``with`` block takes it, and the program goes on after the block.
    """


class StorageError(RunFailedError, OSError):
    """The run's files can't be written any more; what was complete stays readable."""


class ProbeError(RunFailedError):
    """A probe or a callback raised, and the run ends because ``on_probe_error`` is "raise"."""


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that isn't one of the known ones."""
    known = [*known]
    told = nearest(given, known)
    return UserError(f"unknown {what} {given!r} (known: {', '.join(known)}){told and f'. {told}'}")


def nearest(given: str, known: Iterable[str]) -> str:
    """A sentence that names the known name which is most like a mistyped one; empty where none is like it."""
    import difflib

    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(given.lower(), names, n=1)
    return f"Did you mean '{names[found[0]]}'?" if found else ""
