"""What a parquet file says of itself, checked before any of its rows is read.

A file may claim more rows than memory holds: a run-length encoded column of a billion equal values takes a few hundred
bytes. Its footer, too, may be made of many small things that take a hundred times as much memory. And it may claim less
than its pages unpack to: their own headers are what a reader of pages believes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
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

_PAGE_HEADER = 1 << 16
"""Bytes within which a page's header ends. It holds statistics of the page, of 4 KiB at most by Arrow."""

_PAGE_DEPTH = 4
"""How deep the structs in a page's header nest."""

_INTEGER = 5
"""Thrift's number for an integer of 32 bits."""


def read_footer(
    path: Path,
    *,
    rows: int = limits.PART_ROWS,
    size: int = limits.PART_BYTES,
    page: int = limits.PAGE_BYTES,
    texts: int = limits.PART_TEXT_BYTES,
) -> pq.FileMetaData:
    """Read the footer of a parquet file, and nothing else of it but the headers of its pages.

    Args:
        path: the file.
        rows: the most rows that it may claim.
        size: the most bytes that it may claim, uncompressed.
        page: the most bytes that one of its pages may unpack to.
        texts: the most bytes that all pages of its texts may unpack to.

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
    if claims <= rows and claimed <= size:
        pages = _pages(path, footer)
        claimed = max(claimed, pages.size)
        if pages.largest > page or pages.texts > texts:
            raise RefusedFileError(
                path,
                f"its pages unpack to {pages.largest:,} bytes, its texts to {pages.texts:,}, of {page:,} and {texts:,} "
                f"that they can have",
            )
    # The number is stored with a sign, and a forged one may be negative.
    if footer.num_rows < 0 or claims > rows or claimed > size:
        raise RefusedFileError(
            path, f"it claims {claims:,} rows in {claimed:,} bytes, of {rows:,} rows in {size:,} bytes that it can have"
        )
    return footer


@dataclass(frozen=True, slots=True)
class _Pages:
    """What the pages of a parquet file unpack to, by their own headers, in bytes.

    Attributes:
        size: all of them.
        largest: the largest one.
        texts: those of texts.
    """

    size: int
    largest: int
    texts: int


_SEEN: dict[tuple[str, int, int, int], _Pages] = {}
"""What was found, by path, inode, size and time: a run's parts are asked for again whenever a table is read."""

_MOST_SEEN = 1 << 14


def _pages(path: Path, footer: pq.FileMetaData) -> _Pages:
    """Read the headers of a file's pages.

    Raises:
        RefusedFileError: it has too many pages.
        ValueError: a page's header is none.
    """
    size = largest = texts = count = 0
    with open_plain(path) as stream:
        about = os.fstat(stream.fileno())
        key = (os.fspath(path), about.st_ino, about.st_size, about.st_mtime_ns)
        if key in _SEEN:
            return _SEEN[key]
        for group in (footer.row_group(index) for index in range(footer.num_row_groups)):
            for column in (group.column(index) for index in range(group.num_columns)):
                is_text = column.physical_type.endswith("BYTE_ARRAY")
                # A column without a dictionary has None, or 0, for its place.
                place = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
                end = place + column.total_compressed_size
                while place < end:
                    if (count := count + 1) > limits.PAGES:
                        raise RefusedFileError(path, f"it has more than {limits.PAGES:,} pages")
                    stream.seek(place)
                    header = _PageHeader(stream.read(min(_PAGE_HEADER, end - place)))
                    place += header.length + header.packed
                    size, largest = size + header.unpacked, max(largest, header.unpacked)
                    texts += header.unpacked if is_text else 0
    if len(_SEEN) >= _MOST_SEEN:
        _SEEN.clear()
    _SEEN[key] = _Pages(size, largest, texts)
    return _SEEN[key]


class _PageHeader:
    """A page's header, in the compact protocol of Thrift.

    Attributes:
        length: its own bytes.
        unpacked: bytes of the page that follows it, unpacked.
        packed: bytes of the page as it stands there.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        self._numbers: dict[int, int] = {}
        try:
            self._struct(depth=0)
            self.length, self.unpacked, self.packed = self._at, self._numbers[2], self._numbers[3]
        except (IndexError, KeyError):
            raise ValueError("the header of a page is damaged") from None
        if self.unpacked < 0 or self.packed < 0:
            raise ValueError("a page has a negative size")

    def _struct(self, depth: int) -> None:
        field = 0
        while (head := self._byte()) & 0x0F:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 0x0F
            if depth == 0 and kind == _INTEGER:
                self._numbers[field] = self._zigzag()
            else:
                self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (1, 2):  # a truth value stands in its head
            return
        if kind == 3:
            self._byte()
        elif kind in (4, _INTEGER, 6):
            self._varint()
        elif kind == 7:
            self._at += 8
        elif kind == 8:
            length = self._varint()
            self._at += length
        elif kind == 12 and depth < _PAGE_DEPTH:
            self._struct(depth + 1)
        else:  # a page's header has no lists
            raise ValueError("the header of a page is damaged")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("the header of a page is damaged")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


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
