from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.live.recording import begin, steps
from tvlars_probe.live.live_runs import LiveRuns
from tvlars_probe.traces.manifest import FILE_NAME

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, name: str, saved: int) -> None:
    journal = begin(folder / name)
    steps(journal, 0, 3)
    journal.flush(3)
    journal.finish("completed")
    os.utime(folder / name / FILE_NAME, (saved, saved))


def test_the_run_that_was_written_last_comes_first_and_others_are_counted(tmp_path: Path) -> None:
    for name, saved in (("a", 10), ("deep/b", 30), ("c", 20)):
        make(tmp_path, name, saved)
    runs = LiveRuns(tmp_path)
    assert [state.name for state in runs.renew()] == ["b", "c", "a"]
    assert [state.name for state in runs.renew(2)] == ["b", "c"]
    assert runs.count == 3
    os.utime(tmp_path / "a" / FILE_NAME, (40, 40))
    assert [state.name for state in runs.renew(2)] == ["a", "b"]
    assert [(state.status, state.steps_done, state.loss) for state in runs.renew(1)] == [("completed", 3, 2.0)]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name, saved in (("a/run", 10), ("b/run", 20), ("c", 30)):
        make(tmp_path, name, saved)
    assert [state.name for state in LiveRuns(tmp_path).renew()] == ["c", "b/run", "a/run"]


def test_new_runs_damaged_ones_and_none(tmp_path: Path) -> None:
    assert LiveRuns(tmp_path / "none").renew() == []
    runs = LiveRuns(tmp_path)
    assert runs.renew() == []
    make(tmp_path, "a", 10)
    make(tmp_path, "b", 20)
    (tmp_path / "b" / FILE_NAME).write_text("{")
    runs._search_at = 0.0
    assert [state.status for state in runs.renew()] == ["damaged", "completed"]
