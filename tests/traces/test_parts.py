from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tvlars_probe.errors import TraceError
from tvlars_probe.traces import parts
from tvlars_probe.traces.schema import STEPS
from tvlars_probe.traces.writer import TraceWriter


def write(folder: Path, *spans: tuple[int, int]) -> Path:
    """A table ``steps`` of one part per span of steps."""
    for first, last in spans:
        writer = TraceWriter(folder, "r")
        writer.append(
            "steps", {"step": list(range(first, last + 1)), "loss": [float(i) for i in range(first, last + 1)]}
        )
        writer.flush()
    return folder / "steps"


def steps_in(folder: Path) -> list[int]:
    return [step for part in parts.list_parts(folder) for step in pq.read_table(part.path)["step"].to_pylist()]


def test_names_hold_the_steps_and_files_of_other_names_are_no_parts(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 4), (5, 9))
    (folder / ".part-0000000010-0000000019.parquet.123.tmp").write_bytes(b"half")
    assert pd.read_parquet(folder)["step"].tolist() == list(range(10))
    (folder / "notes.txt").write_text("x")
    assert [(p.first_step, p.last_step) for p in parts.list_parts(folder)] == [(0, 4), (5, 9)]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        parts.replace_file(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_cutting_moves_later_parts_aside(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 4), (5, 9), (10, 12))
    assert parts.cut(folder, 5, tmp_path / "aside") == 2
    assert steps_in(folder) == [0, 1, 2, 3, 4]
    assert steps_in(tmp_path / "aside") == list(range(5, 13))


def test_cutting_leaves_a_prefix_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, *[(i, i) for i in range(6)])
    seen = []
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (rename(self, to), seen.append(steps_in(folder)))[0])
    parts.cut(folder, 2, tmp_path / "aside")
    assert seen == [list(range(n)) for n in (5, 4, 3, 2)]


def test_a_part_across_the_cut_is_divided(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 3), (4, 9), (10, 12))
    assert parts.cut(folder, 5, tmp_path / "aside") == 2
    assert steps_in(folder) == list(range(5))
    assert steps_in(tmp_path / "aside") == list(range(5, 13))


def test_a_part_that_cannot_be_divided_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no exchange here")

    folder = write(tmp_path, (0, 9), (10, 12))
    monkeypatch.setattr(parts, "exchange", refuse)
    with pytest.raises(TraceError, match="can't be cut at step 5"):
        parts.cut(folder, 5, tmp_path / "aside")
    assert steps_in(folder) == list(range(13))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_compacting_keeps_all_rows_and_respects_boundaries(tmp_path: Path) -> None:
    folder = write(tmp_path, *[(i, i) for i in range(20)])
    before = pd.read_parquet(folder)
    assert parts.compact(folder, STEPS, [7, 15])
    assert [(p.first_step, p.last_step) for p in parts.list_parts(folder)] == [(0, 6), (7, 14), (15, 19)]
    pd.testing.assert_frame_equal(pd.read_parquet(folder), before)
    assert not parts.compact(folder, STEPS, [7, 15])


def test_compacting_leaves_large_parts_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1), (2, 60), (61, 61), (62, 62))
    large = parts.list_parts(folder)[2].path.stat().st_ino
    assert parts.compact(folder, STEPS, target_rows=100)
    assert [(p.first_step, p.last_step) for p in parts.list_parts(folder)] == [(0, 1), (2, 60), (61, 62)]
    assert parts.list_parts(folder)[1].path.stat().st_ino == large


def test_where_folders_cannot_be_exchanged_nothing_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    monkeypatch.setattr(parts, "exchange", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    assert not parts.compact(folder, STEPS)
    assert steps_in(folder) == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["steps"]


def test_leftovers_of_a_killed_compaction_are_removed(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    (tmp_path / ".steps-compact-99").mkdir()
    parts.compact(folder, STEPS)
    assert [p.name for p in tmp_path.iterdir()] == ["steps"]


def test_two_parts_of_the_same_steps_are_both_kept(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 2), (0, 2))
    assert len(parts.list_parts(folder)) == 2
