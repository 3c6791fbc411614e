"""Parts from strangers: refused before a row of them is read."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.table_parts import write, write_layers
from tvlars_probe.admission import limits
from tvlars_probe.errors import TraceError, UnreadableError
from tvlars_probe.runs import open_run
from tvlars_probe.traces.checking.trace import check_trace
from tvlars_probe.traces.footers import check_footer, describe, read_footer, rows_in_memory
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.schema import STEPS
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Manifest(run_id="r").save(tmp_path)
    write(tmp_path / "trace", (0, 4), (5, 9))
    return tmp_path


def test_a_part_of_ours_says_what_it_is(run: Path) -> None:
    footer = check_footer(next((run / "trace" / "steps").iterdir()), "steps")
    assert describe(footer) == {"schema_version": 1, "table": "steps", "run_id": "r"}


def test_a_billion_rows_in_a_megabyte_are_refused_unread(run: Path) -> None:
    bomb = run / "trace" / "steps" / "part-0000000010-0000000019.parquet"
    nothing = pa.table({"step": pa.nulls(1 << 26)})
    with pq.ParquetWriter(bomb, nothing.schema) as writer:
        for _ in range(15):
            writer.write_table(nothing, row_group_size=1 << 26)
    assert bomb.stat().st_size < 1 << 21
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TraceError, match=r"part-0000000010-\S+ is refused: it claims 1,006,632,960 rows .* --repair"):
        open_run(run).steps()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kibibytes
    writer_of_run = TraceWriter(run / "trace", "r")
    assert not writer_of_run.compact("steps")
    assert len(list((run / "trace" / "steps").iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is damaged \(it is empty\)"),
        (b"PAR1 but no more", "is damaged"),
        ("cut", "is damaged"),
        ("another table's", "no part of the table steps: it belongs to the table layers"),
        ("another program's", "no part of the table steps: it was not written by tvlars-probe"),
        ("a later version's", "schema version 99; this tvlars-probe reads up to 1: upgrade"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else None,
)
def test_what_is_no_part_is_named_with_the_remedy(run: Path, content: bytes | str, message: str) -> None:
    part = sorted((run / "trace" / "steps").iterdir())[-1]
    if isinstance(content, bytes):
        part.write_bytes(content)
    elif content == "cut":
        part.write_bytes(part.read_bytes()[:-20])
    elif content == "another table's":
        writer = TraceWriter(run / "elsewhere", "r")
        writer.append("layers", {"step": [5], "parameter": ["w"]})
        writer.flush()
        next((run / "elsewhere" / "layers").iterdir()).replace(part)
    elif content == "another program's":
        pq.write_table(pa.table({"step": [5]}), part)
    else:
        rows = pq.read_table(part)
        footer = b'{"schema_version": 99, "table": "steps", "run_id": "r"}'
        pq.write_table(rows.replace_schema_metadata({b"tvlars_probe": footer}), part)
    with pytest.raises(TraceError, match=message) as caught:
        open_run(run).steps()
    assert str(part) in str(caught.value)
    if "upgrade" not in message:
        assert f"'tvlars-probe check {run} --repair' sets it aside" in str(caught.value)


def test_a_part_whose_pages_are_damaged_is_named(run: Path) -> None:
    part = sorted((run / "trace" / "steps").iterdir())[0]
    content = bytearray(part.read_bytes())
    start = read_footer(part).row_group(0).column(STEPS.names.index("loss")).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    part.write_bytes(content)
    with pytest.raises(TraceError, match=f"{part} is damaged"):
        open_run(run).steps(["step", "loss"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_the_system_refuses_to_read_is_not_called_damaged(
    run: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = sorted((run / "trace" / "steps").iterdir())[-1]
    monkeypatch.setattr(pq, "read_metadata", lambda path: (_ for _ in ()).throw(OSError(number, "refused", str(path))))
    with pytest.raises(UnreadableError, match=r"can't be read: refused$"):
        read_footer(part)


def test_arrow_gives_the_systems_number(run: Path) -> None:
    """What `refuse_unreadable` rests on: a refusal has a number, damage has none."""
    damaged = run / "damaged.parquet"
    damaged.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises((pa.ArrowException, OSError)) as caught:
        pq.read_metadata(damaged)
    assert getattr(caught.value, "errno", None) is None
    with pytest.raises(OSError, match=r"too long") as caught:
        pq.read_metadata(f"{run}/{'x' * 300}")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_what_is_no_plain_file_is_refused_unopened(run: Path) -> None:
    part = run / "trace" / "steps" / "part-0000000010-0000000011.parquet"
    os.mkfifo(part)
    with pytest.raises(TraceError, match=r"is no plain file; .*--repair"):
        open_run(run).steps()
    part.unlink()
    part.mkdir()
    with pytest.raises(TraceError, match=r"is no plain file; .*--repair"):
        open_run(run).steps()


def test_many_parts_that_claim_more_rows_than_memory_holds_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvlars_probe.traces.reader.rows_in_memory", lambda row_bytes: 800 // row_bytes)
    there = len(open_run(run).steps(["step"]))
    assert 800 // 8 > there > 800 // STEPS.row_bytes(STEPS.names)
    with pytest.raises(TraceError, match=rf"the table steps of \S+ has {there} rows, of which this machine's memory"):
        open_run(run).steps()
    assert len(open_run(run).steps(steps=(0, 2))) == 3
    seen = open_run(run).batches("steps", list(STEPS.names), lambda batches: sum(map(len, batches)))
    assert seen == there
    monkeypatch.setattr("tvlars_probe.traces.checking.tables.rows_in_memory", lambda row_bytes: there - 1)
    assert any("or memory, can hold" in fault.problem for fault in check_trace(run).faults)


def test_memory_is_what_the_machine_has() -> None:
    assert 1 << 28 < 4 * 100 * rows_in_memory(100) < 1 << 50


@pytest.mark.parametrize("note", ["[" * 100_000, '{"table": "steps"}' + " " * (1 << 16), "[]", "\\", '"\\ud800"'])
def test_a_note_that_is_none_of_ours_is_another_programs(run: Path, note: str) -> None:
    part = sorted((run / "trace" / "steps").iterdir())[-1]
    pq.write_table(pq.read_table(part).replace_schema_metadata({"tvlars_probe": note}), part)
    with pytest.raises(TraceError, match="it was not written by tvlars-probe"):
        open_run(run).steps()
    assert [fault.path for fault in check_trace(run).faults] == [part.relative_to(run).as_posix()]


def test_a_footer_of_too_many_bytes_is_refused_unread(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FOOTER_BYTES", 1000)
    monkeypatch.setattr(pq, "read_metadata", None)
    with pytest.raises(TraceError, match=r"its footer has [\d,]+ bytes, of 1,000"):
        open_run(run).steps()


def test_names_that_are_no_utf8_are_damage(run: Path) -> None:
    """As a flipped bit in the page of names leaves them."""
    write_layers(run / "trace", (0, 9))
    [part] = (run / "trace" / "layers").iterdir()
    names = pa.DictionaryArray.from_arrays(
        pa.array([0] * 30, pa.int32()), pa.array([b"w\xe9"]).cast(pa.string(), safe=False)
    )
    rows = pq.read_table(part)
    pq.write_table(rows.set_column(rows.column_names.index("parameter"), rows.schema.field("parameter"), names), part)
    for read in (lambda: open_run(run).layers(), lambda: open_run(run).batches("layers", ["parameter"], list)):
        with pytest.raises(TraceError, match=f"a part of the table layers is damaged: {part}"):
            read()
    assert [fault.path for fault in check_trace(run).faults if "is damaged" in fault.problem] == [
        part.relative_to(run).as_posix()
    ]


def test_a_run_whose_folder_is_no_utf8_is_read_and_merged(run: Path) -> None:
    hostile = run.rename(run.parent / os.fsdecode(b"caf\xe9"))
    opened = open_run(hostile)
    assert opened.name == "caf\\udce9"
    assert opened.steps(["step"])["step"].tolist() == [*range(10)]
    assert opened.batches("steps", ["step"], lambda batches: sum(map(len, batches))) == 10
    assert check_trace(hostile).faults == []
    writer = TraceWriter(hostile / "trace", "r")
    assert writer.compact("steps")
    assert open_run(hostile).steps(["step"])["step"].tolist() == [*range(10)]
    part = next((hostile / "trace" / "steps").iterdir())
    part.write_bytes(b"")
    with pytest.raises(TraceError, match=r"is damaged \(it is empty\)"):
        open_run(hostile).steps()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("parameter", pa.string()), ("parameter", pa.large_string()),
        ("lr", pa.float64()), ("step", pa.decimal128(20)), ("lr", pa.list_(pa.float32())), ("later", pa.string()),
    ],
    ids=str,
)  # fmt: skip
def test_a_column_of_another_type_is_refused_unread(run: Path, column: str, kind: Any) -> None:
    """A string of a megabyte in a dictionary page stands for it in each of a part's eight million rows."""
    write_layers(run / "trace", (0, 9))
    [part] = (run / "trace" / "layers").iterdir()
    rows = pq.read_table(part)
    place, there = rows.column_names.index("lr" if column == "later" else column), pa.nulls(len(rows), kind)
    if not rows.schema.field(place).nullable:
        there = rows.column(place).cast(pa.string() if "string" in str(kind) else pa.int64()).cast(kind)
    pq.write_table(rows.set_column(place, pa.field(column, kind), there), part)
    with pytest.raises(
        TraceError, match=rf"is no part of the table layers: its column '{column}' is of type .*--repair"
    ):
        open_run(run).layers()
    assert [f.path for f in check_trace(run).faults if "is of type" in f.problem] == [part.relative_to(run).as_posix()]


def test_a_later_versions_column_of_a_known_type_is_passed_over(run: Path) -> None:
    for part in (run / "trace" / "steps").iterdir():
        rows = pq.read_table(part)
        pq.write_table(rows.append_column("later", pa.array(["a"] * len(rows)).dictionary_encode()), part)
    assert len(open_run(run).steps()) == 10
