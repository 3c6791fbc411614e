"""What a parquet file says of itself, checked before any of its rows is read.

A file may claim more rows than memory holds: a run-length encoded column of a billion equal values takes a few hundred
bytes. Its footer, too, may be made of many small things that take a hundred times as much memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import open_plain
from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

_TAIL = 8
"""Bytes of the end of a parquet file: the length of its footer, and the letters PAR1."""


def read_footer(path: Path, *, rows: int = limits.PART_ROWS, size: int = limits.PART_BYTES) -> pq.FileMetaData:
    """Read the footer of a parquet file, and nothing else of it.

    Args:
        path: the file.
        rows: the most rows that it may claim.
        size: the most bytes that it may claim, uncompressed.

    Raises:
        OSError: it isn't there, or the system refuses to read it; damage that Arrow finds may be one without a number.
        RefusedFileError: it is no plain file, or claims more than it may.
        pyarrow.ArrowException: it is damaged; also ValueError and OverflowError.
    """
    import pyarrow.parquet as pq

    with open_plain(path) as stream:
        whole = os.fstat(stream.fileno()).st_size
        stream.seek(max(whole - _TAIL, 0))
        tail = stream.read(_TAIL)
    claimed = int.from_bytes(tail[:4], "little")
    # What is no parquet file, or is cut short, Arrow calls by its name.
    if tail[4:] == b"PAR1" and limits.FOOTER_BYTES < claimed <= whole:
        raise RefusedFileError(path, f"its footer has {claimed:,} bytes, of {limits.FOOTER_BYTES:,} that it can have")
    with open_arrow(path) as source:
        footer = pq.read_metadata(source)
    chunks = footer.num_row_groups * max(footer.num_columns, 1)
    if chunks > limits.FOOTER_CHUNKS:
        raise RefusedFileError(path, f"it claims {chunks:,} pieces, of {limits.FOOTER_CHUNKS:,} that it can have")
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    # The file, its row groups and their columns each claim a number of their own, and a reader may trust any of them.
    claims = max(footer.num_rows, sum(group.num_rows for group in groups), *(_values(group) for group in groups), 0)
    claimed = max(sum(group.total_byte_size for group in groups), sum(_bytes(group) for group in groups))
    # The number is stored with a sign, and a forged one may be negative.
    if footer.num_rows < 0 or claims > rows or claimed > size:
        raise RefusedFileError(
            path, f"it claims {claims:,} rows in {claimed:,} bytes, of {rows:,} rows in {size:,} bytes that it can have"
        )
    return footer


def open_arrow(path: Path) -> pa.NativeFile:
    """A file as Arrow reads it. Arrow can't open a path that is no UTF-8 by itself, only by its bytes.

    Raises:
        OSError: it isn't there, or the system refuses to open it.
    """
    import pyarrow as pa

    encoded: Any = os.fsencode(path)
    return pa.OSFile(encoded, "r")


def largest_piece(footer: pq.FileMetaData) -> int:
    """Bytes, uncompressed, that the largest column of a row group claims."""
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    return max(
        (group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)), default=0
    )


def _values(group: Any) -> int:
    """The largest number of values that a column of a row group claims."""
    return max((group.column(index).num_values for index in range(group.num_columns)), default=0)


def _bytes(group: Any) -> int:
    """Bytes that the columns of a row group claim, uncompressed."""
    return sum(max(group.column(index).total_uncompressed_size, 0) for index in range(group.num_columns))
