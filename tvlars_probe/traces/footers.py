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
from tvlars_probe.traces.table_form import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow.parquet as pq

MOST_ROWS = 1 << 23
"""The most rows that a part may claim; the writer's parts have at most some four million."""

MOST_BYTES = 1 << 31
"""The most bytes that a part may claim, uncompressed."""

_COPIES = 4
"""How often each row is in memory at once while rows are made into a frame."""


def read_footer(path: Path) -> pq.FileMetaData:
    """Read the footer of a part, and nothing else of it.

    Raises:
        FileNotFoundError: there is no such file (a part may be merged into another meanwhile).
        UnreadableError: the system refuses to read it.
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
        reason = "it is empty" if not path.stat().st_size else first_line(error)
        raise TraceError(f"{path} is damaged ({reason}): {remedy(path)}") from None
    # The file, its row groups and their columns each claim a number of their own, and a reader may trust any of them.
    rows = max(footer.num_rows, sum(group.num_rows for group in groups), *(_values(group) for group in groups), 0)
    size = sum(group.total_byte_size for group in groups)
    # The number is stored with a sign, and a forged one may be negative.
    if footer.num_rows < 0 or rows > MOST_ROWS or size > MOST_BYTES:
        raise TraceError(
            f"{path} claims {rows:,} rows in {size:,} bytes, more than a part can hold ({MOST_ROWS:,} rows): "
            f"{remedy(path)}"
        )
    return footer


def rows_in_memory(row_bytes: int) -> int:
    """The number of rows that this machine's memory holds while they are made into a frame.

    Args:
        row_bytes: bytes of one row.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 1 << 31
    return memory // (_COPIES * row_bytes)


def check_footer(path: Path, table: str, run_id: str | None = None) -> pq.FileMetaData:
    """Read the footer of a part, and check that it belongs to ``table`` (and to the run ``run_id``, if that is given).

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses to read it.
        LaterVersionError: it has a later schema version.
        TraceError: it is damaged, or belongs to another table or run.
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
    # A part whose footer names no run may belong to any.
    other = about.get("run_id")
    if run_id is not None and other is not None and other != run_id:
        raise TraceError(f"{path} belongs to another run, {other}: {remedy(path)}")
    return footer


def describe(footer: pq.FileMetaData) -> dict[str, Any] | None:
    """What the writer noted in a footer: schema_version, table, run_id. None if another program wrote the part."""
    try:
        about = json.loads((footer.metadata or {})[b"tvlars_probe"])
    except (KeyError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def refuse_special(path: Path) -> None:
    """Refuse a path that is no plain file: opening a FIFO would wait for ever.

    Raises:
        FileNotFoundError: nothing is there.
        UnreadableError: the system refuses to look at it.
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
    """Raise if ``error`` is a refusal of the system (permission, disk, too many open files) and not damage.

    Arrow's errors carry the system's error number for a refusal, and none for damage.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses.
    """
    if isinstance(error, FileNotFoundError):
        raise error
    # A folder under the name of a part is damage: it can be set aside.
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, IsADirectoryError):
        raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None


def remedy(path: Path) -> str:
    """The advice about a damaged file of a run."""
    # A table's folder stands in trace/ or sharpness/, or in the run itself (landscape).
    run = next((folder.parent for folder in path.parents if folder.name in ("trace", "sharpness")), path.parents[1])
    return f"'tvlars-probe check {shlex.quote(str(run))} --repair' sets it aside"


def _values(group: Any) -> int:
    """The largest number of values that a column of a row group claims."""
    return max((group.column(index).num_values for index in range(group.num_columns)), default=0)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that isn't blank; the error's class where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
