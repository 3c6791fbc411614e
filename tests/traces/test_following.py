"""A follower has read what the reader reads, whatever happened between its looks."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.live.recording import begin, layers, resume, steps
from tvlars_probe.errors import RunDirectoryError, TraceError
from tvlars_probe.traces import following
from tvlars_probe.traces.following import Follower
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.reader import Trace

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.traces.journal import Journal

COLUMNS = {"steps": ["loss"], "layers": ["parameter", "grad_norm"], "epochs": ["epoch"]}


class Reading:
    """What a user of a follower holds: the rows of all looks, without those that were cut."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.follower = Follower(path, COLUMNS, **options)
        self.rows: dict[str, list[dict[str, Any]]] = {table: [] for table in COLUMNS}

    def look(self) -> list[str]:
        """Look, and tell which tables had new rows."""
        gained = self.follower.look()
        if gained.cut_back is not None:
            self.rows = {name: [r for r in rows if r["step"] < gained.cut_back] for name, rows in self.rows.items()}
        for table, rows in gained.tables.items():
            self.rows[table] += rows.to_pylist()
        return [*gained.tables]

    def refuse_others(self, path: Path) -> None:
        for table, columns in COLUMNS.items():
            assert self.rows[table] == Trace(path).frame(table, ["step", *columns]).to_dict("records")


def write(journal: Journal, first: int, end: int, mark: int) -> None:
    """Steps of three tensors each, and an epoch of every third step."""
    for step in range(first, end):
        steps(journal, step, step + 1, loss=lambda step: step + mark / 64)
        layers(journal, step, ["stem", "body", "head"], grad_norm=[step, mark, 0.5])
        if step % 3 == 2:
            journal.append_epoch({"step": step + 1, "epoch": step // 3, "phase": "train"})
    journal.flush(end)


OPERATIONS = st.tuples(
    st.sampled_from(("write", "write", "merge", "resume", "finish")), st.integers(1, 4), st.booleans()
)
"""What happens, over how many steps, and whether there is a look right after it."""


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATIONS, min_size=3, max_size=9))
@example(operations=[("write", 2, True), ("write", 2, False), ("merge", 1, True)])  # a part half read
@example(operations=[("write", 2, True), ("write", 2, True), ("resume", 2, False), ("write", 2, True)])  # equal names
def test_it_reads_the_same_rows_whatever_is_flushed_merged_and_resumed(
    operations: list[tuple[str, int, bool]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.rmtree(path, ignore_errors=True)
    journal, done = begin(path), 0
    reading = Reading(path)
    for mark, (operation, number, looks) in enumerate(operations):
        if operation == "write":
            write(journal, done, done + number, mark)
            done += number
        elif operation == "merge":
            for table in COLUMNS:
                journal._writer.compact(table, journal.boundaries)
        else:
            journal.release() if operation == "resume" else journal.finish("completed")
            if looks:
                reading.look()
            done = max(0, done - number)
            journal = resume(path, done)
        if looks:
            reading.look()
    reading.look()
    reading.refuse_others(path)
    assert reading.look() == []
    journal.release()


def test_a_look_reads_only_new_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 4, 0)
    reading = Reading(tmp_path / "r")
    reading.look()
    opened: list[str] = []
    real = following.check_footer
    monkeypatch.setattr(following, "check_footer", lambda path, *rest: (opened.append(path.name), real(path, *rest))[1])
    assert reading.look() == []
    assert opened == []
    write(journal, 4, 6, 0)
    reading.look()
    assert {*opened} == {"part-0000000004-0000000005.parquet", "part-0000000006-0000000006.parquet"}
    journal.finish("completed")
    opened.clear()
    assert reading.look() == []  # merged parts hold nothing new
    assert opened == []
    reading.refuse_others(tmp_path / "r")


def test_it_tells_from_where_on_a_resumed_run_is_recorded_anew(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 8, 0)
    follower = Follower(tmp_path / "r", COLUMNS)
    assert follower.look().cut_back is None
    journal.release()
    assert follower.status == "killed"
    journal = resume(tmp_path / "r", 5)
    gained = follower.look()
    assert (gained.cut_back, gained.tables.get("steps")) == (5, None)
    assert follower.status == "running"
    write(journal, 5, 6, 1)
    gained = follower.look()
    assert gained.cut_back is None
    assert gained.tables["steps"].to_pydict() == {"step": [5], "loss": [5 + 1 / 64]}
    journal.release()


def test_parts_that_vanish_in_a_merge_are_read_where_they_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 3, 0)
    write(journal, 3, 6, 0)
    reading = Reading(tmp_path / "r")
    real = following.list_parts

    def list_and_merge(folder: Path) -> Any:
        parts = real(folder)
        journal._writer.compact(folder.name)
        return parts

    monkeypatch.setattr(following, "list_parts", list_and_merge)
    reading.look()
    assert len(real(tmp_path / "r" / "trace" / "steps")) == 1  # they were merged after they had been listed
    assert [row["step"] for row in reading.rows["steps"]] == [*range(6)]
    assert [row["step"] for row in reading.rows["layers"]] == [step for step in range(6) for _ in range(3)]
    journal.release()


def test_parts_that_go_on_vanishing_are_an_error(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 3, 0)
    part = list_parts(tmp_path / "r" / "trace" / "steps")[0].path
    part.unlink()
    part.symlink_to(tmp_path / "nowhere")
    with pytest.raises(TraceError, match=r"parts of the table steps of .* vanish"):
        Reading(tmp_path / "r").look()
    journal.release()


def test_the_first_look_at_a_long_run_reads_its_last_parts(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    for first in range(0, 12, 3):
        write(journal, first, first + 3, 0)
    reading = Reading(tmp_path / "r", most_rows=18)
    reading.look()
    assert [row["step"] for row in reading.rows["layers"]] == [step for step in range(6, 12) for _ in range(3)]
    assert [row["step"] for row in reading.rows["steps"]] == [*range(12)]
    reading = Reading(tmp_path / "r", most_rows=1)  # the last part is read, however large
    reading.look()
    assert [row["step"] for row in reading.rows["steps"]] == [9, 10, 11]
    journal.release()


def test_another_run_in_its_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 8, 0)
    reading = Reading(tmp_path / "r")
    reading.look()
    journal.release()
    shutil.rmtree(tmp_path / "r")
    journal = begin(tmp_path / "r")
    journal.manifest.run_id = journal._writer.run_id = "another"
    write(journal, 0, 3, 1)
    reading.look()
    assert reading.rows["steps"] == [{"step": step, "loss": step + 1 / 64} for step in range(3)]
    journal.release()


@pytest.mark.parametrize("damage", ["cut short", "of another run"])
def test_damage_is_named_and_the_other_tables_are_read(tmp_path: Path, damage: str) -> None:
    journal, other = begin(tmp_path / "r"), begin(tmp_path / "other")
    for each in (journal, other):
        write(each, 0, 3, 0)
    part, foreign = (list_parts(tmp_path / name / "trace" / "layers")[0].path for name in ("r", "other"))
    part.write_bytes(part.read_bytes()[:200] if damage == "cut short" else foreign.read_bytes())
    with pytest.raises(TraceError, match=part.name):
        Follower(tmp_path / "r", COLUMNS).look()
    follower = Follower(tmp_path / "r", COLUMNS, passes_over_damage=True)
    gained = follower.look()
    assert [*gained.damaged] == ["layers"]
    assert {*gained.tables} == {"steps", "epochs"}
    again = follower.look()
    assert again.damaged["layers"] is gained.damaged["layers"]  # it wasn't read again
    part.unlink()
    write(journal, 3, 4, 0)
    mended = follower.look()
    assert mended.damaged == {}
    assert mended.tables["layers"]["step"].to_pylist() == [3, 3, 3]
    for each in (journal, other):
        each.release()


def test_a_damaged_part_that_is_mended_in_place_is_read(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    write(journal, 0, 3, 0)
    part = list_parts(tmp_path / "r" / "trace" / "steps")[0].path
    whole, about = part.read_bytes(), part.stat()
    part.write_bytes(b"PAR1" + bytes(len(whole) - 4))
    follower = Follower(tmp_path / "r", COLUMNS, passes_over_damage=True)
    assert [*follower.look().damaged] == ["steps"]
    part.write_bytes(whole)
    os.utime(part, ns=(about.st_atime_ns, about.st_mtime_ns))  # as a backup's copy, or a change of rights alone
    gained = follower.look()
    assert gained.damaged == {}
    assert gained.tables["steps"]["step"].to_pylist() == [0, 1, 2]
    journal.release()


def test_a_manifest_that_is_saved_while_following_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, load = begin(tmp_path / "r"), Manifest.load

    def load_then_save(path: Path) -> Manifest:
        loaded = load(path)
        journal.manifest.notes.append("the last words")
        journal.manifest.save(path)
        return loaded

    monkeypatch.setattr(Manifest, "load", load_then_save)
    follower = Follower(tmp_path / "r", COLUMNS)
    monkeypatch.undo()
    follower.look()
    assert follower.manifest.notes == ["the last words"]
    journal.release()


def test_a_run_that_vanishes_while_following_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, load = begin(tmp_path / "r"), Manifest.load

    def load_then_vanish(path: Path) -> Manifest:
        loaded = load(path)
        shutil.rmtree(path)
        return loaded

    monkeypatch.setattr(Manifest, "load", load_then_vanish)
    follower = Follower(tmp_path / "r", COLUMNS)
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        follower.look()
    journal.release()


def test_columns_that_an_older_run_lacks_are_null(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    journal = begin(tmp_path / "r")
    write(journal, 0, 3, 0)
    part = list_parts(tmp_path / "r" / "trace" / "steps")[0].path
    pq.write_table(pq.read_table(part).drop_columns(["loss"]), part)
    rows = Follower(tmp_path / "r", {"steps": ["loss"]}).look().tables["steps"]
    assert rows.to_pydict() == {"step": [0, 1, 2], "loss": [None] * 3}
    journal.release()


def test_a_run_that_vanishes_is_an_error_of_its_directory(tmp_path: Path) -> None:
    journal = begin(tmp_path / "r")
    follower = Follower(tmp_path / "r", COLUMNS)
    journal.release()
    shutil.rmtree(tmp_path / "r")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        follower.look()
