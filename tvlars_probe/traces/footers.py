"""What a parquet part says of itself, checked before any of its rows is read.

A part from a stranger may be cut short, belong to another table, or claim more rows than memory holds: a run-length
encoded column of a billion equal values takes a few hundred bytes on disk.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import LaterVersionError, TraceError, UnreadableError
from tvlars_probe.traces.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow.parquet as pq

MOST_ROWS = 1 << 23
"""Rows of one part: the writer makes at most some four million."""

MOST_BYTES = 1 << 31
"""Bytes of one part when uncompressed."""

_COPIES = 4
"""Of rows that are made into a frame, how many are in memory at a time."""


def read_footer(path: Path) -> pq.FileMetaData:
    """The footer of a part; nothing else of it is read.

    Raises:
        FileNotFoundError: there is no such file (a part may be merged into another meanwhile).
        UnreadableError: the system refuses.
        TraceError: it is no parquet file, or claims more than a part can hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_special(path)
    try:
        footer = pq.read_metadata(path)
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        refuse_unreadable(path, error)
        reason = "it is empty" if not path.stat().st_size else _first_line(error)
        raise TraceError(f"{path} is damaged ({reason}): {remedy(path)}") from None
    rows = max(footer.num_rows, sum(group.num_rows for group in groups), *(_values(group) for group in groups), 0)
    size = sum(group.total_byte_size for group in groups)
    if footer.num_rows < 0 or rows > MOST_ROWS or size > MOST_BYTES:
        raise TraceError(
            f"{path} claims {rows:,} rows in {size:,} bytes, more than a part can hold ({MOST_ROWS:,} rows): "
            f"{remedy(path)}"
        )
    return footer


def rows_in_memory(row_bytes: int) -> int:
    """How many rows of so many bytes this machine's memory can hold while they are made into a frame."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 31
    return memory // (_COPIES * row_bytes)


def check_footer(path: Path, table: str, run_id: str | None = None) -> pq.FileMetaData:
    """`read_footer` of a part of ``table`` (and of the run ``run_id``, where that is known).

    Raises:
        FileNotFoundError: there is no such file.
        LaterVersionError: it is of a later version.
        TraceError: it is damaged, another table's, or another run's.
    """
    footer = read_footer(path)
    about = describe(footer)
    if about is None or about.get("table") != table:
        what = "was not written by tvlars-probe" if about is None else f"belongs to the table {about.get('table')}"
        raise TraceError(f"{path} is no part of the table {table}: it {what}; {remedy(path)}")
    version = about.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise LaterVersionError(
            f"{path} has schema version {version!r}; this tvlars-probe reads up to {SCHEMA_VERSION}: upgrade it"
        )
    other = about.get("run_id")
    if run_id is not None and other is not None and other != run_id:
        raise TraceError(f"{path} belongs to another run, {other}: {remedy(path)}")
    return footer


def describe(footer: pq.FileMetaData) -> dict[str, Any] | None:
    """What the writer noted in a footer: schema_version, table, run_id; None where another program wrote it."""
    try:
        about = json.loads((footer.metadata or {})[b"tvlars_probe"])
    except (KeyError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def refuse_special(path: Path) -> None:
    """Refuse what is there but is no plain file: opening a FIFO would wait for ever.

    Raises:
        FileNotFoundError: nothing is there.
        UnreadableError: the system refuses.
        TraceError: it is a folder, a FIFO, a device, ...
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise TraceError(f"{path} is no plain file: {remedy(path)}")


def refuse_unreadable(path: Path, error: BaseException) -> None:
    """Raise where ``error`` is the system's refusal (permission, disk, open files) and not damage.

    Arrow tells of damage by errors without a number.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses.
    """
    if isinstance(error, FileNotFoundError):
        raise error
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, IsADirectoryError):
        raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None


def remedy(path: Path) -> str:
    """What to do about a damaged file of a run."""
    run = next((folder.parent for folder in path.parents if folder.name in ("trace", "sharpness")), path.parents[1])
    return f"'tvlars-probe check {shlex.quote(str(run))} --repair' sets it aside"


def _values(group: Any) -> int:
    return max((group.column(index).num_values for index in range(group.num_columns)), default=0)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
