from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.traces.table_parts import steps_in, write, write_layers
from tvlars_probe.traces import compaction
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.schema import LAYERS, STEPS
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_names_hold_the_steps_and_files_of_other_names_are_no_parts(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 4), (5, 9))
    (folder / ".part-0000000010-0000000019.parquet.123.tmp").write_bytes(b"half")
    assert pd.read_parquet(folder)["step"].tolist() == list(range(10))
    (folder / "notes.txt").write_text("x")
    assert [(p.first_step, p.last_step) for p in list_parts(folder)] == [(0, 4), (5, 9)]


def test_two_parts_of_the_same_steps_are_both_kept(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 2), (0, 2))
    assert len(list_parts(folder)) == 2


def test_what_is_no_table_is_passed_over_when_a_run_ends(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 0), (1, 1))
    (tmp_path / "foo").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    TraceWriter(tmp_path, "r").settle()
    assert len(list_parts(folder)) == 1


WORK: dict[str, Callable[[Path], object]] = {
    "a first part": lambda home: write(home, (0, 3)),
    "a further part": lambda home: write(home / "trace", (0, 3), (4, 7)),
    "a cut": lambda home: compaction.cut(write(home, (0, 9)), 5, home / "aside"),
    "a merge": lambda home: compaction.compact(write(home, (0, 1), (2, 3)), STEPS),
    "a sorted merge": lambda home: compaction.compact(write_layers(home, (0, 1), (2, 3)), LAYERS, by_parameter=True),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_tables_folder_holds_whole_parts_and_nothing_else_whenever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], object]
) -> None:
    """What it holds is looked at before each sync, and before each part takes its name."""
    seen: list[Path] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        for file in (path for path in tmp_path.rglob("*/*") if re.match(r"\.?(steps|layers)", path.parent.name)):
            seen.append(file)
            assert file.match("part-*.parquet")
            assert pq.read_metadata(file).num_rows
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    work(tmp_path)
    assert seen
    assert not [*tmp_path.rglob(".*")]


def test_the_folder_of_a_table_is_not_there_before_its_first_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of folders refuse an empty one."""
    folders = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (folders.append((tmp_path / "steps").exists()), sync(fd))[1])
    folder = write(tmp_path, (0, 2))
    assert folders[0] is False
    assert steps_in(folder) == [0, 1, 2]
