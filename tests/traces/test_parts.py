from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from tests.traces.table_parts import write
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
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
