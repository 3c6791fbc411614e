from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.traces.table_parts import pairs_in, steps_in, write, write_layers
from tvlars_probe.errors import TraceError
from tvlars_probe.traces import compaction, files
from tvlars_probe.traces.parts import Part, is_by_parameter, list_parts
from tvlars_probe.traces.schema import LAYERS, STEPS
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable


def test_cutting_moves_later_parts_aside(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 4), (5, 9), (10, 12))
    assert compaction.cut(folder, 5, tmp_path / "aside") == 2
    assert steps_in(folder) == [0, 1, 2, 3, 4]
    assert steps_in(tmp_path / "aside") == list(range(5, 13))


def test_cutting_leaves_a_prefix_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, *[(i, i) for i in range(6)])
    seen = []
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (rename(self, to), seen.append(steps_in(folder)))[0])
    compaction.cut(folder, 2, tmp_path / "aside")
    assert seen == [list(range(n)) for n in (5, 4, 3, 2)]


def test_a_part_across_the_cut_is_divided(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 3), (4, 9), (10, 12))
    assert compaction.cut(folder, 5, tmp_path / "aside") == 2
    assert steps_in(folder) == list(range(5))
    assert steps_in(tmp_path / "aside") == list(range(5, 13))


def test_a_part_that_cannot_be_divided_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no exchange here")

    folder = write(tmp_path, (0, 9), (10, 12))
    monkeypatch.setattr(compaction, "exchange", refuse)
    with pytest.raises(TraceError, match="can't be cut at step 5"):
        compaction.cut(folder, 5, tmp_path / "aside")
    assert steps_in(folder) == list(range(13))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_compacting_keeps_all_rows_and_respects_boundaries(tmp_path: Path) -> None:
    folder = write(tmp_path, *[(i, i) for i in range(20)])
    before = pd.read_parquet(folder)
    assert compaction.compact(folder, STEPS, [7, 15])
    assert [(p.first_step, p.last_step) for p in list_parts(folder)] == [(0, 6), (7, 14), (15, 19)]
    pd.testing.assert_frame_equal(pd.read_parquet(folder), before)
    assert not compaction.compact(folder, STEPS, [7, 15])


def test_compacting_leaves_large_parts_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1), (2, 60), (61, 61), (62, 62))
    large = list_parts(folder)[2].path.stat().st_ino
    assert compaction.compact(folder, STEPS, target_rows=100)
    assert [(p.first_step, p.last_step) for p in list_parts(folder)] == [(0, 1), (2, 60), (61, 62)]
    assert list_parts(folder)[1].path.stat().st_ino == large


def test_where_folders_cannot_be_exchanged_nothing_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    monkeypatch.setattr(compaction, "exchange", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    assert not compaction.compact(folder, STEPS)
    assert steps_in(folder) == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["steps"]


def test_leftovers_of_a_killed_compaction_are_removed(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    (tmp_path / ".steps-compact-99").mkdir()
    compaction.compact(folder, STEPS)
    assert [p.name for p in tmp_path.iterdir()] == ["steps"]


def test_a_settled_table_is_in_order_of_parameters_and_stays_so(tmp_path: Path) -> None:
    folder = write_layers(tmp_path, (0, 1), (2, 3), (4, 5))
    assert compaction.compact(folder, LAYERS, [4], by_parameter=True)
    expected = [(step, name) for span in ((0, 4), (4, 6)) for name in ("stem", "body", "head") for step in range(*span)]
    assert pairs_in(folder) == expected
    assert not compaction.compact(folder, LAYERS, [4], by_parameter=True)
    assert all(is_by_parameter(part) for part in list_parts(folder))


def test_a_settled_table_is_cut_where_a_run_is_continued_and_settled_again(tmp_path: Path) -> None:
    folder = write_layers(tmp_path, (0, 3), (4, 7))
    compaction.compact(folder, LAYERS, by_parameter=True)
    compaction.cut(folder, 3, tmp_path / "aside")
    assert sorted(pairs_in(folder)) == sorted((s, n) for s in range(3) for n in ("stem", "body", "head"))
    write_layers(tmp_path, (3, 5))
    assert compaction.compact(folder, LAYERS, by_parameter=True)
    assert pairs_in(folder) == [(step, name) for name in ("stem", "body", "head") for step in range(6)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_the_exchange_shows_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = write_layers(tmp_path, (0, 3), (4, 7))
    expected = sorted(pairs_in(folder))
    swap = compaction.exchange

    def killed(first: Path, second: Path) -> None:
        if moment == "after":
            swap(first, second)
        raise KeyboardInterrupt

    monkeypatch.setattr(compaction, "exchange", killed)
    monkeypatch.setattr(compaction.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing
    with pytest.raises(KeyboardInterrupt):
        compaction.compact(folder, LAYERS, by_parameter=True)
    assert sorted(pairs_in(folder)) == expected
    assert len(pd.read_parquet(folder)) == len(expected)
    monkeypatch.undo()
    compaction.compact(folder, LAYERS, by_parameter=True)
    assert sorted(pairs_in(folder)) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["layers"]


def rewritten(part: Part, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(part.path)), part.path)


def of_another_run(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata(STEPS.arrow_schema("stranger").metadata)


def of_a_later_version(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata(
        {b"tvlars_probe": b'{"schema_version": 99, "table": "steps", "run_id": "r"}'},
    )


def of_another_program(rows: pa.Table) -> pa.Table:
    return pa.table({"step": rows["step"]})


def with_text_for_steps(rows: pa.Table) -> pa.Table:
    index = rows.column_names.index("step")
    return rows.set_column(index, "step", rows["step"].cast(pa.string()))


@pytest.mark.parametrize("change", [of_another_run, of_a_later_version, of_another_program, with_text_for_steps])
def test_a_table_with_a_strange_part_is_left_as_it_is(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    folder = write(tmp_path, (0, 0), (1, 1), (2, 2))
    rewritten(list_parts(folder)[1], change)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    writer = TraceWriter(tmp_path, "r")
    writer.settle()
    assert not writer.compact("steps")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["steps"]


def test_files_that_are_no_parts_outlive_merging_and_cutting(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 4))
    (folder / "notes.txt").write_text("mine")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "a").write_text("mine too")
    (folder / "link").symlink_to("nowhere")
    (folder / ".part-0000000000-0000000000.parquet.7.tmp").write_bytes(b"half")
    assert compaction.compact(folder, STEPS)
    compaction.cut(folder, 3, tmp_path / "aside")
    assert steps_in(folder) == [0, 1, 2]
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "drafts" / "a").read_text() == "mine too"
    assert (folder / "link").is_symlink()
    assert not list(folder.glob(".*"))


def test_a_folder_in_which_nothing_can_be_made_leaves_parts_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, (0, 2), (3, 5))

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert not compaction.compact(folder, STEPS)
    with pytest.raises(TraceError, match="Permission denied; nothing is lost"):
        compaction.split(folder, 1)
    assert steps_in(folder) == [*range(6)]


def test_where_folders_cannot_be_exchanged_nothing_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "trace", *((step, step) for step in range(6)))
    written: list[Path] = []
    monkeypatch.setattr(compaction, "write_pieces", lambda *args, **kwargs: written.append(args[0]))

    def refused(*_: Path) -> None:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(files, "exchange", refused)
    for _ in range(3):
        assert not compaction.compact(folder, STEPS)
    assert written == []
    assert sorted(p.name for p in folder.parent.iterdir()) == ["steps"]


def test_parts_that_overlap_are_not_merged(tmp_path: Path) -> None:
    folder = write(tmp_path / "trace", (0, 4), (3, 9))
    assert not compaction.compact(folder, STEPS)
    assert len(list(folder.iterdir())) == 2


def test_a_part_without_rows_is_merged_like_any_other(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    rewritten(list_parts(folder)[0], lambda rows: rows.slice(0, 0))
    assert compaction.compact(folder, STEPS)
    assert steps_in(folder) == [1]
