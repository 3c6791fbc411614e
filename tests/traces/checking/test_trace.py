"""Damage is found and named, and read by nobody."""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.traces.checking.damages import (
    parts,
    truncate,
)
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
    from pathlib import Path


def test_a_sound_run_is_whole(run: Path) -> None:
    found = check_run(run)
    assert (found.faults, found.notes) == ([], [])
    assert (found.steps, found.checkpoints) == (32, len(checkpoints.list_checkpoints(run)))
    assert found.parts == len(list(run.rglob("part-*.parquet")))


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
    with pytest.raises(RunDirectoryError, match=r"is damaged \(it is compressed\)"):
        checkpoints.load(path)


def test_a_part_of_another_run_is_not_read(run: Path, other: Path) -> None:
    part = parts(run, "steps")[0]
    shutil.copy(next((other / "trace" / "steps").iterdir()), part)
    with pytest.raises(TraceError, match="belongs to another run"):
        open_run(run).steps()
