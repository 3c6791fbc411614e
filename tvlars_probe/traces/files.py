"""Files that are never seen half written, and two folders that change places in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cached_property
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    with suppress(OSError, AttributeError):  # some file systems, and Windows, can't open a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write(stream)`` fill a temporary file beside ``path``, sync it, and rename it there.

    Raises:
        OSError: it can't be written (no space, no permission, ...); ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # no link that stands there is followed
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's writer meets a refused write with an assertion of its own.
        cause = (error.__cause__ or error.__context__) if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        if cause.errno is not None:
            cause.filename = str(path)
        raise cause from None
    sync_folder(path.parent)


def exchange(first: Path, second: Path) -> None:
    """Swap two folders' names in one step that no reader can see the middle of.

    Raises:
        OSError: the system or the file system can't.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OSError("this platform can't exchange two folders in one step")
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = os.fsencode(first), os.fsencode(second)
    at_cwd, swap = -100, 2  # AT_FDCWD, and RENAME_EXCHANGE or RENAME_SWAP
    try:
        if sys.platform == "linux":
            failed = libc.renameat2(at_cwd, here, at_cwd, there, swap)
        else:
            failed = libc.renamex_np(here, there, swap)
    except AttributeError:
        raise OSError(errno.ENOSYS, "the system's library can't exchange two folders", str(second)) from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


class Exchange:
    """Whether two folders below one can change places.

    Args:
        folder: below which; all of it lies on one file system.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_possible(self) -> bool:
        """Tried out once; a file system that is full or read-only is asked again."""
        try:
            return self._tried
        except OSError:
            return False

    @cached_property
    def _tried(self) -> bool:
        places = [self.folder / f".exchange-{side}-{os.getpid()}" for side in "ab"]
        try:
            for place in places:
                place.mkdir()
            exchange(*places)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise  # that may pass
            return False
        finally:
            for place in places:
                with suppress(OSError):
                    place.rmdir()
        return True
