"""Damage of every kind: found, named, set aside; nothing is ever deleted."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from tests.traces.test_parts import write
from tvlars_probe.errors import RunDirectoryError, TraceError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.checking import check_run, repair_run
from tvlars_probe.runners.train import resume
from tvlars_probe.runs import open_run
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def unmerged(trained: Callable[..., Path]) -> Path:
    """A finished run with a part per checkpointed epoch: its parts were never merged."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(TraceWriter, "settle", lambda self, boundaries: None)
        return trained("tvlars", sharpness=True, alpha=0.11)


@pytest.fixture
def run(tmp_path: Path, unmerged: Path) -> Path:
    """A copy of it to be damaged."""
    shutil.copytree(unmerged, tmp_path / "r")
    return tmp_path / "r"


def parts(run: Path, table: str) -> list[Path]:
    return sorted((run / "trace" / table).iterdir())


def everything(folder: Path) -> list[bytes]:
    return sorted(p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "run.json"))


def truncate(run: Path) -> str:
    part = parts(run, "layers")[3]
    part.write_bytes(part.read_bytes()[:200])
    return part.relative_to(run).as_posix()


def empty(run: Path) -> str:
    part = parts(run, "steps")[2]
    part.write_bytes(b"")
    return part.relative_to(run).as_posix()


def misname(run: Path) -> str:
    part = parts(run, "steps")[-1]
    return part.rename(part.with_name("part-0000000900-0000000999.parquet")).relative_to(run).as_posix()


def double(run: Path) -> str:
    part = parts(run, "steps")[0]
    copy = part.with_name(part.name.replace(".parquet", "-2.parquet"))
    shutil.copy(part, copy)
    return copy.relative_to(run).as_posix()


def foreign(run: Path) -> str:
    part = parts(run, "epochs")[0]
    shutil.copy(parts(run, "layers")[0], part)
    return part.relative_to(run).as_posix()


def leftover(run: Path) -> str:
    (run / "trace" / "steps" / ".part-0000000000-0000000001.parquet.7.tmp").write_bytes(b"half")
    return "trace/steps/.part-0000000000-0000000001.parquet.7.tmp"


def link(run: Path) -> str:
    (run / "trace" / "spectrum").symlink_to(run.parent, target_is_directory=True)
    return "trace/spectrum"


def checkpoint(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    path.write_bytes(path.read_bytes()[:-100])
    return path.relative_to(run).as_posix()


def other_model(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    torch.save(checkpoints.load(path) | {"model": {"0.weight": torch.zeros(3, 3)}}, path)
    return path.relative_to(run).as_posix()


def renamed_checkpoint(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    return path.rename(path.with_name("step-7.pt")).relative_to(run).as_posix()


def manifest(run: Path) -> str:
    path = run / "run.json"
    path.write_text(path.read_text()[:500])
    return "run.json"


DAMAGES = (
    truncate,
    empty,
    misname,
    double,
    foreign,
    leftover,
    link,
    checkpoint,
    other_model,
    renamed_checkpoint,
    manifest,
)


def test_a_sound_run_is_whole(run: Path) -> None:
    found = check_run(run)
    assert (found.faults, found.notes) == ([], [])
    assert (found.steps, found.checkpoints) == (32, len(checkpoints.list_checkpoints(run)))
    assert found.parts == len(list(run.rglob("part-*.parquet")))


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


def test_missing_steps_and_untrue_manifests_are_told_but_not_mended(run: Path) -> None:
    parts(run, "steps")[2].unlink()
    parts(run, "steps")[-1].unlink()
    found = check_run(run)
    told = {(fault.path, fault.problem) for fault in found.faults}
    assert ("trace/steps", "steps 8 to 11 are missing") in told
    assert ("run.json", "says completed, but 24 of 32 steps are there") in told
    assert repair_run(run, found) is None


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
    where, name = {"run.json": (Path, "read_bytes"), "trace": (pq, "read_metadata"), "checkpoints": (torch, "load")}[
        place
    ]
    monkeypatch.setattr(where, name, refuse)
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


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


@pytest.mark.parametrize("status", ["completed", "interrupted", "running"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda run: shutil.rmtree(run / "trace"), "run.json"),
        (lambda run: replace_by_file(run / "trace"), "trace"),
        (lambda run: replace_by_file(run / "trace" / "steps"), "trace/steps"),
        (lambda run: replace_by_file(run / "checkpoints"), "checkpoints"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints"),
        (lambda run: shutil.rmtree(run / "trace" / "layers"), "trace/layers"),
        (lambda run: parts(run, "layers")[2].unlink(), "trace/layers"),
        (lambda run: shutil.rmtree(run / "trace" / "epochs"), "trace/epochs"),
        (lambda run: parts(run, "epochs")[2].unlink(), "trace/epochs"),
        (lambda run: ((run / ".lock").unlink(missing_ok=True), (run / ".lock").mkdir()), ".lock"),
    ],
    ids=[
        "no trace",
        "trace a file",
        "steps a file",
        "checkpoints a file",
        "no checkpoint",
        "no layers",
        "layers of some steps gone",
        "no epochs",
        "an epoch gone",
        "lock a folder",
    ],
)
def test_what_a_run_lacks_is_told(run: Path, status: str, harm: Callable[[Path], object], told: str) -> None:
    stored = Manifest.load(run)
    stored.status = status
    stored.save(run)
    assert check_run(run).faults == []
    harm(run)
    assert told in [fault.path for fault in check_run(run).faults]


def test_a_run_cut_back_and_killed_before_it_went_on_is_whole(run: Path) -> None:
    stored = Manifest.load(run)
    stored.status = "running"
    stored.save(run)
    directory = RunDirectory.take_over(run)
    directory.cut_back(20)
    directory.release()
    assert check_run(run).faults == []


def test_layers_recorded_every_few_steps_or_never_are_whole(run: Path) -> None:
    for part in parts(run, "layers"):
        rows = pq.read_table(part)
        rows = rows.filter(pc.equal(pc.bit_wise_and(rows["step"], 1), 0))
        pq.write_table(rows, part)
        part.rename(
            part.with_name(f"part-{min(rows['step'].to_pylist()):010d}-{max(rows['step'].to_pylist()):010d}.parquet")
        )
    assert "trace/layers" in [fault.path for fault in check_run(run).faults]
    for part in parts(run, "steps"):
        rows = pq.read_table(part)
        odd = pc.equal(pc.bit_wise_and(rows["step"], 1), 1)
        place = rows.column_names.index("grad_norm")
        unrecorded = pc.if_else(odd, pa.scalar(None, pa.float64()), rows["grad_norm"])
        pq.write_table(rows.set_column(place, rows.schema.field(place), unrecorded), part)
    assert check_run(run).faults == []


@pytest.mark.parametrize("step", [10**13, 2**63 - 1])
def test_a_part_of_a_far_step_makes_a_gap_and_takes_no_memory(run: Path, step: int) -> None:
    writer = TraceWriter(run / "trace", Manifest.load(run).run_id)
    writer.append("steps", {"step": [step]})
    writer.flush()
    told = {(fault.path, fault.problem) for fault in check_run(run).faults}
    assert told == {("trace/steps", f"steps 32 to {step - 1} are missing")}


def test_more_rows_than_a_run_can_have_are_refused_unread(run: Path) -> None:
    writer = TraceWriter(run / "trace", Manifest.load(run).run_id)
    writer.append("steps", {"step": [7] * 1000})
    writer.flush()
    told = {fault.path: fault for fault in check_run(run).faults}
    assert "claims 1,000 rows" in told["trace/steps/part-0000000007-0000000007.parquet"].problem
    assert told["trace/steps/part-0000000007-0000000007.parquet"].repair == "set aside"


def test_a_part_that_leads_nowhere_is_named_with_the_remedy(run: Path, cli: Callable[..., Any]) -> None:
    part = run / "trace" / "steps" / "part-0000000032-0000000033.parquet"
    part.symlink_to("nowhere")
    for command in ("show", "warmup"):
        outcome = cli(command, run)
        assert outcome.code == 2
        assert "leads to a file that isn't there" in outcome.err
        assert "--repair' sets it aside" in outcome.err
    repair_run(run, check_run(run))
    assert cli("show", run).code == 0


def test_a_manifest_is_made_anew_only_if_anything_tells_what_the_run_was(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"can't be made anew.*nothing was changed"):
        repair_run(tmp_path, check_run(tmp_path))
    assert (tmp_path / "run.json").read_text() == "{"
    with pytest.raises(RunDirectoryError, match="there is no run at"):
        check_run(tmp_path / "nowhere")


def test_the_command_tells_its_exit_code(run: Path, cli: Callable[..., Any]) -> None:
    assert cli("check", run).code == 0
    name = truncate(run)
    outcome = cli("check", run)
    assert outcome.code == 1
    assert f"{name}: " in outcome.out
    assert "[--repair: set aside]" in outcome.out
    outcome = cli("check", run, "--repair", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["set_aside"] == [name]
    assert cli("check", run.parent / "nowhere").code == 2


def foreign_manifest(run: Path, other: Path) -> str:
    shutil.copy(other / "run.json", run / "run.json")
    return "run.json"


@pytest.fixture
def other(tmp_path: Path, trained: Callable[..., Path]) -> Path:
    return trained("sgd")


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


def test_rows_without_a_step_are_named_with_their_part(run: Path) -> None:
    part = parts(run, "steps")[1]
    rows = pq.read_table(part)
    nulls = rows.set_column(1, pa.field("step", pa.int64()), pa.nulls(len(rows), pa.int64()))
    pq.write_table(nulls.replace_schema_metadata(rows.schema.metadata), part)
    for read in (
        lambda: open_run(run).steps(),
        lambda: open_run(run).batches("steps", ["step"], lambda batches: [*batches]),
    ):
        with pytest.raises(TraceError, match=rf"{part.name} \(rows without step\); 'tvlars-probe check"):
            read()
    assert any("holds rows without step" in fault.problem for fault in check_run(run).faults)


def test_a_manifest_of_gigabytes_is_refused_unread(run: Path) -> None:
    with (run / "run.json").open("ab") as stream:
        stream.truncate(1 << 35)
    with pytest.raises(RunDirectoryError, match=r"run.json is damaged: it has 34,359,738,368 bytes, of 67,108,864"):
        open_run(run)
    assert [fault.repair for fault in check_run(run).faults] == ["write anew"]


def test_a_manifest_of_a_run_of_ages_is_checked_at_once(run: Path) -> None:
    manifest = Manifest.load(run)
    manifest.segments[-1]["last_step"] = manifest.phases[0]["epochs"] = 1 << 60
    manifest.save(run)
    assert any("says that step 1152921504606846976" in fault.problem for fault in check_run(run).faults)


def test_a_name_beyond_all_numbers_is_no_part_and_its_steps_are_missing(run: Path) -> None:
    part = parts(run, "steps")[-1]
    part.rename(part.with_name(f"part-{part.name[5:15]}-{'9' * 23}.parquet"))
    repair_run(run, check_run(run))
    assert Manifest.load(run).gaps
    assert not check_run(run).faults


def test_a_redundant_part_that_is_set_aside_leaves_no_gap(tmp_path: Path) -> None:
    Manifest(run_id="r", status="completed").save(tmp_path)
    write(tmp_path / "trace", (0, 5), (6, 11), (4, 7))
    assert [fault.repair for fault in check_run(tmp_path).faults] == ["set aside"]
    repair_run(tmp_path, check_run(tmp_path))
    assert Manifest.load(tmp_path).gaps == []
    assert not check_run(tmp_path).faults


def test_a_run_is_not_continued_on_a_part_that_is_not_what_its_name_says(run: Path) -> None:
    manifest, last = Manifest.load(run), parts(run, "steps")[-1]
    manifest.status = "interrupted"
    manifest.save(run)
    last.rename(last.with_name(last.name[:16] + "0000000099.parquet"))
    with pytest.raises(TraceError, match=r"which is not what its name says: 'tvlars-probe check .* --repair'"):
        resume(run, quiet=True)


def test_what_a_kill_left_half_done_goes_when_the_run_goes_on(run: Path) -> None:
    manifest = Manifest.load(run)
    manifest.status = "interrupted"
    manifest.save(run)
    left = [run / ".run.json.77.tmp", run / "checkpoints" / ".step-8.pt.77.tmp"]
    other = run / "checkpoints" / ".mine.tmp"
    for path in (*left, other):
        path.write_bytes(b"half")
    directory = RunDirectory.take_over(run)
    directory.cut_back(32)
    directory.release()
    assert not any(path.exists() for path in left)
    assert other.exists()


def test_a_compressed_checkpoint_is_refused_unread(run: Path) -> None:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    entries = {}
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(RunDirectoryError, match=r"is not a checkpoint of tvlars-probe \(it is compressed\)"):
        checkpoints.load(path)


def test_a_part_of_another_run_is_not_read(run: Path, other: Path) -> None:
    part = parts(run, "steps")[0]
    shutil.copy(next((other / "trace" / "steps").iterdir()), part)
    with pytest.raises(TraceError, match="belongs to another run"):
        open_run(run).steps()
