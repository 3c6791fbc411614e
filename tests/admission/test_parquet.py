"""Pages that unpack to more than their file claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tvlars_probe.admission import limits, parquet
from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from pathlib import Path

MOST = 1 << 20


def lying(path: Path, value: int, told: int) -> None:
    """Put another number of as many bytes in place of one in the footer, however often it stands there."""

    def written(number: int, size: int) -> bytes:
        number, parts = number << 1, []
        while number or len(parts) < size:
            parts.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*parts[:-1], parts[-1] & 0x7F])

    content = bytearray(path.read_bytes())
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    there = written(value, 0)
    footer = bytes(content[start:-8])
    assert there in footer
    content[start:-8] = footer.replace(there, written(told, len(there)))
    path.write_bytes(content)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_say_what_they_unpack_to(tmp_path: Path, version: str, use_dictionary: bool, compression: str) -> None:
    names = [f"name {i}" for i in range(5000)]
    table = pa.table({"n": names, "x": [None if i % 3 else i / 7 for i in range(5000)], "b": [True] * 5000})
    path = tmp_path / "p.parquet"
    pq.write_table(
        table, path, row_group_size=2000, data_page_size=3000, compression=compression, data_page_version=version,
        use_dictionary=use_dictionary, write_page_index=True, store_decimal_as_integer=True,
    )  # fmt: skip
    footer = parquet.read_footer(path)
    found = parquet._pages(path, footer)
    claimed = sum(parquet._bytes(footer.row_group(i)) for i in range(footer.num_row_groups))
    # What is claimed counts the headers, too.
    assert 0.9 * claimed < found.size < claimed
    assert sum(map(len, names)) < found.texts < found.size
    assert found.largest < 60_000


def test_a_footer_that_claims_less_than_its_pages_unpack_to_is_no_way_in(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": ["x" * 50_000_000]}), path, compression="zstd")
    group = pq.read_metadata(path).row_group(0)
    for claim in {group.total_byte_size, group.column(0).total_uncompressed_size}:
        lying(path, claim, 1000)
    assert pq.read_metadata(path).row_group(0).total_byte_size == 1000
    assert path.stat().st_size < 10_000
    with pytest.raises(RefusedFileError, match=r"its pages unpack to 50,000,004 bytes, .* of 33,554,432"):
        parquet.read_footer(path)
    with pytest.raises(RefusedFileError, match=r"it claims 1 rows in 50,[\d,]+ bytes, of .* rows in 1,048,576"):
        parquet.read_footer(path, size=MOST, page=1 << 30)
    with pytest.raises(RefusedFileError, match="its texts to"):
        parquet.read_footer(path, page=1 << 30, texts=MOST)


def test_a_page_whose_header_is_none_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": [*range(1000)]}), path)
    content = path.read_bytes()
    for byte in (b"\xff", b"\x19", b"\x1c", b"\x00", b"\x80"):
        path.write_bytes(content[:4] + byte * 200 + content[204:])
        with pytest.raises(ValueError, match="of a page is damaged"):
            parquet.read_footer(path)


def test_pages_without_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": [*range(10_000)]}), path, data_page_size=100)
    monkeypatch.setattr(limits, "PAGES", 10)
    with pytest.raises(RefusedFileError, match="more than 10 pages"):
        parquet.read_footer(path)
