"""Only plain files are opened: to open a FIFO is to wait for a writer, and a device may never end."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import IO, TYPE_CHECKING

from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def refuse_special(path: Path) -> None:
    """Refuse a path that is no plain file.

    Raises:
        OSError: nothing is there, or the system refuses to look at it.
        RefusedFileError: it is a folder, a FIFO, a socket, a device, ...
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise RefusedFileError(path, "it is no plain file")


def refuse_larger(path: Path, most: int) -> None:
    """Refuse a plain file of more than ``most`` bytes, whether it takes them on the disk or not.

    Raises:
        OSError: it isn't there, or the system refuses to look at it.
        RefusedFileError: it is no plain file, or has more bytes.
    """
    refuse_special(path)
    if (size := path.stat().st_size) > most:
        raise RefusedFileError(path, f"it has {size:,} bytes, of {most:,} that it can have")


def open_plain(path: Path) -> IO[bytes]:
    """Open a plain file for reading.

    Raises:
        OSError: it isn't there, or the system refuses to open it.
        RefusedFileError: it is no plain file.
    """
    refuse_special(path)  # first, since to open a device may do something
    # Another process may put a FIFO there meanwhile: without O_NONBLOCK the open would wait.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFileError(path, "it is no plain file")
    return os.fdopen(descriptor, "rb")


def below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, in no order. No link is followed, and what can't be listed is passed over.

    Folders may nest deeper than Python's stack, on which `Path.rglob` goes down.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with contextlib.suppress(OSError):
            children = [*here.iterdir()]
            yield from children
            waiting += [child for child in children if child.is_dir() and not child.is_symlink()]


def read_plain(path: Path, most: int) -> bytes:
    """The content of a plain file of at most ``most`` bytes.

    Raises:
        OSError: it isn't there, or the system refuses to read it.
        RefusedFileError: it is no plain file, or has more bytes.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        # The size that the system tells may be wrong, as it is in /proc: no more is read than is allowed.
        content = b"" if size > most else stream.read(most + 1)
    if max(size, len(content)) > most:
        raise RefusedFileError(path, f"it has {max(size, len(content)):,} bytes, of {most:,} that it can have")
    return content
