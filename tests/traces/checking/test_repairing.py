"""What is damaged is set aside; nothing is ever deleted."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from tests.traces.checking.damages import (
    DAMAGES,
    checkpoint,
    everything,
    foreign_manifest,
    manifest,
    parts,
    truncate,
)
from tests.traces.table_parts import write
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.checking import check_run, repair_run
from tvlars_probe.runners.train import resume
from tvlars_probe.runs import open_run
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_found_and_set_aside_with_nothing_deleted(run: Path, damage: Callable[[Path], str]) -> None:
    name = damage(run)
    before = everything(run)
    found = check_run(run)
    assert name in [fault.path for fault in found.faults if fault.repair]
    assert everything(run) == before
    aside = repair_run(run, found)
    assert aside is not None
    assert (aside / name).is_symlink() or (aside / name).exists()
    again = check_run(run)
    assert again.faults == []
    assert any(name in note for note in again.notes)
    assert everything(run) == before
    open_run(run).steps()


def test_a_run_repaired_is_trained_to_its_end(run: Path) -> None:
    last = [*checkpoints.list_checkpoints(run)][-1]
    checkpoint(run)
    stored = Manifest.load(run)
    stored.status = "interrupted"
    stored.save(run)
    with pytest.raises(RunDirectoryError, match=f"step-{last}.pt is damaged .*'tvlars-probe check {run} --repair'"):
        resume(run, quiet=True)
    repair_run(run, check_run(run))
    resume(run, quiet=True)
    found = check_run(run)
    assert found.faults == []
    assert found.steps == 32
    assert last in checkpoints.list_checkpoints(run)


def test_a_manifest_is_made_anew_as_the_last_checkpoint_knew_it(run: Path) -> None:
    before = Manifest.load(run)
    manifest(run)
    repair_run(run, check_run(run))
    after = Manifest.load(run)
    assert (after.run_id, after.config_id, after.config) == (before.run_id, before.config_id, before.config)
    assert (after.parameters, after.phases, after.data) == (before.parameters, before.phases, before.data)
    assert after.status == "interrupted"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 99}, "schema version 99; this tvlars-probe reads up to 1: upgrade it"),
        ({"status": "splendid"}, "its status is 'splendid'"),
    ],
)
def test_what_only_another_version_can_read_is_left_alone(run: Path, change: dict[str, Any], problem: str) -> None:
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | change))
    found = check_run(run)
    assert [fault.repair for fault in found.faults] == [None]
    assert problem in found.faults[0].problem
    assert repair_run(run, found) is None


def test_a_run_that_is_being_written_is_not_repaired(run: Path) -> None:
    truncate(run)
    found = check_run(run)
    held = RunDirectory.take_over(run)
    with pytest.raises(RunDirectoryError, match="another process is writing"):
        repair_run(run, found)
    held.release()


@pytest.mark.parametrize("broken", [True, False])
def test_nothing_is_set_aside_through_a_link(run: Path, broken: bool) -> None:
    outside = run.parent / "outside"
    outside.mkdir()
    (run / "aside").symlink_to(outside, target_is_directory=True)
    if broken:
        truncate(run)
    found = check_run(run)
    assert ("aside", None) in [(fault.path, fault.repair) for fault in found.faults]
    if broken:
        with pytest.raises(RunDirectoryError, match=r"aside is a link.*remove the link"):
            repair_run(run, found)
    else:
        assert repair_run(run, found) is None
    assert [*outside.iterdir()] == []


def test_what_lies_behind_a_link_stays_where_it_is(run: Path) -> None:
    outside = run.parent / "outside"
    truncate(run)
    checkpoint(run)
    for name in ("trace", "checkpoints"):
        (run / name).rename(outside.with_name(f"outside-{name}"))
        (run / name).symlink_to(outside.with_name(f"outside-{name}"), target_is_directory=True)
    before = [path for name in ("trace", "checkpoints") for path in sorted((run.parent / f"outside-{name}").rglob("*"))]
    repair_run(run, check_run(run))
    after = [path for name in ("trace", "checkpoints") for path in sorted((run.parent / f"outside-{name}").rglob("*"))]
    assert after == before
    assert not (run / "trace").is_symlink()


@pytest.mark.parametrize("place", ["run.json", "trace", "checkpoints"])
def test_sound_files_that_cannot_be_read_are_not_set_aside(
    run: Path, place: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    before = everything(run)
    where = {
        "run.json": "tvlars_probe.traces.manifest.read_plain",
        "trace": "pyarrow.parquet.read_metadata",
        "checkpoints": "torch.load",
    }
    monkeypatch.setattr(where[place], refuse)
    outcome = cli("check", run, "--repair")
    monkeypatch.undo()
    assert outcome.code == 2
    assert "can't be read: Permission denied" in outcome.err
    assert everything(run) == before
    assert not (run / "aside").exists()


def test_parts_of_a_later_version_are_left_where_they_are(run: Path) -> None:
    part = parts(run, "steps")[1]
    footer = b'{"schema_version": 99, "table": "steps", "run_id": "r"}'
    pq.write_table(pq.read_table(part).replace_schema_metadata({b"tvlars_probe": footer}), part)
    found = check_run(run)
    told = {fault.path: fault for fault in found.faults}[f"trace/steps/{part.name}"]
    assert told.repair is None
    assert "upgrade" in told.problem
    assert repair_run(run, found) is None


@pytest.mark.parametrize("name", ["trace/steps/part-0000000099-0000000100.parquet", "checkpoints/step-99.pt"])
def test_a_fifo_is_set_aside_and_never_waited_for(run: Path, name: str) -> None:
    os.mkfifo(run / name)
    found = check_run(run)
    assert [(fault.path, fault.repair) for fault in found.faults] == [(name, "set aside")]
    assert "is no plain file" in found.faults[0].problem
    repair_run(run, found)
    assert not (run / name).exists()


def test_a_manifest_is_made_anew_only_if_anything_tells_what_the_run_was(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"can't be made anew.*nothing was changed"):
        repair_run(tmp_path, check_run(tmp_path))
    assert (tmp_path / "run.json").read_text() == "{"
    with pytest.raises(RunDirectoryError, match="there is no run at"):
        check_run(tmp_path / "nowhere")


def test_another_runs_checkpoint_does_not_say_what_the_run_is(run: Path, other: Path) -> None:
    true = Manifest.load(run).run_id
    shutil.copy([*checkpoints.list_checkpoints(other).values()][-1], run / "checkpoints" / "step-32.pt")
    (run / "run.json").write_text("{")
    repair_run(run, check_run(run))
    assert Manifest.load(run).run_id == true
    again = check_run(run)
    assert [fault.path for fault in again.faults] == ["checkpoints/step-32.pt"]
    assert "belongs to the run" in again.faults[0].problem


def test_another_runs_manifest_is_the_odd_one_out(run: Path, other: Path) -> None:
    true = Manifest.load(run)
    foreign_manifest(run, other)
    found = check_run(run)
    assert [(fault.path, fault.repair) for fault in found.faults] == [("run.json", "write anew")]
    assert f"all parts of the trace are of {true.run_id}" in found.faults[0].problem
    repair_run(run, found)
    assert (Manifest.load(run).run_id, Manifest.load(run).config_id) == (true.run_id, true.config_id)
    assert not check_run(run).faults


@pytest.mark.parametrize("table", ["steps", "layers", "epochs"])
def test_what_is_gone_is_noted_as_a_gap(run: Path, table: str) -> None:
    for part in (parts(run, table)[1], parts(run, table)[-1]):
        part.unlink()
    found = check_run(run)
    assert {fault.repair for fault in found.faults} == {"note the gap"}
    assert repair_run(run, found) is None
    again = check_run(run)
    assert again.faults == []
    assert sum(note.startswith(f"{table} lacks steps") for note in again.notes) >= 2


def test_a_redundant_part_that_is_set_aside_leaves_no_gap(tmp_path: Path) -> None:
    Manifest(run_id="r", status="completed").save(tmp_path)
    write(tmp_path / "trace", (0, 5), (6, 11), (4, 7))
    assert [fault.repair for fault in check_run(tmp_path).faults] == ["set aside"]
    repair_run(tmp_path, check_run(tmp_path))
    assert Manifest.load(tmp_path).gaps == []
    assert not check_run(tmp_path).faults


def test_a_name_that_is_nearly_a_parts_is_set_aside_without_a_gap(run: Path) -> None:
    (run / "trace" / "steps" / "part-5.parquet").symlink_to(run.parent)
    aside = repair_run(run, check_run(run))
    assert aside is not None
    assert (aside / "trace" / "steps" / "part-5.parquet").is_symlink()
    assert open_run(run).manifest.gaps == []
