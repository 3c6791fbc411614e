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
    """Make the renames in ``folder`` survive a power cut, where the system can."""
    with suppress(OSError, AttributeError):  # some file systems, and Windows, can't open a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, write: Callable[[IO[bytes]], object], *, made_in: Path | None = None) -> None:
    """Replace ``path``, in one step, by a file with what ``write(stream)`` writes.

    A temporary file is written and synced, and then takes the name ``path``.

    Args:
        path: the file.
        write: writes its content.
        made_in: the folder of the temporary file, on the file system of ``path``; by default that of ``path``. With
            it, the folder of ``path`` is made if it is missing, once the content is written.

    Raises:
        OSError: it can't be written (no space, no permission, ...); ``path`` is as it was.
    """
    # Near it, since a rename within one file system is one step. Our readers skip the dot; `leftovers` knows the form.
    # A file system takes names of 255 bytes.
    name = os.fsdecode(os.fsencode(path.name)[:200])
    temporary = (made_in or path.parent) / f".{name}.{os.getpid()}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # no link that stands there is followed
            write(stream)
            stream.flush()
            # The content must reach the disk before the name does: a power cut could leave an empty file.
            os.fsync(stream.fileno())
        if made_in is not None:
            path.parent.mkdir(exist_ok=True)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save answers a refused write with a RuntimeError: the OSError behind it says what happened.
        cause = (error.__cause__ or error.__context__) if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        if cause.errno is not None:
            # The user knows the file, not the temporary one.
            cause.filename = str(path)
        raise cause from None
    sync_folder(path.parent)


def exchange(first: Path, second: Path) -> None:
    """Swap the names of two folders in one step: no reader sees one of the names missing.

    Raises:
        OSError: the system or the file system can't do that.
    """
    # Python wraps no such call: os.replace refuses to put a folder in the place of one that isn't empty.
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
    except AttributeError:  # an older C library
        raise OSError(errno.ENOSYS, "the system's library can't exchange two folders", str(second)) from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


class Exchange:
    """Tells whether two folders can change places.

    Args:
        folder: the folder above both. What lies below it must be on one file system.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_possible(self) -> bool:
        """Whether they can. This is tried once; a file system that was full or refused a write is tried again."""
        try:
            return self._tried
        except OSError:
            return False

    @cached_property
    def _tried(self) -> bool:
        # Only a trial tells: the C library may know the call and the file system refuse it.
        places = [self.folder / f".exchange-{side}-{os.getpid()}" for side in "ab"]
        try:
            for place in places:
                place.mkdir()
            exchange(*places)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise  # that may pass, and cached_property keeps no result of a call that raises
            return False
        finally:
            for place in places:
                with suppress(OSError):
                    place.rmdir()
        return True
