from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory, find_runs, status

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_new_run_needs_a_new_or_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty").release()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match="already holds something that is not a run"):
        RunDirectory.create(tmp_path / "full")
    Manifest(run_id="r").save(tmp_path / "empty")
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        RunDirectory.create(tmp_path / "empty")


def test_no_run_begins_in_another_ones_directory(tmp_path: Path) -> None:
    """Also where a link leads there: `find_runs` would never find it."""
    (tmp_path / "r" / "trace").mkdir(parents=True)
    Manifest(run_id="r").save(tmp_path / "r")
    (tmp_path / "link").symlink_to(tmp_path / "r")
    for path in (tmp_path / "r" / "inner", tmp_path / "link" / "sub" / "inner"):
        with pytest.raises(RunDirectoryError, match=f"inner lies in the run directory {tmp_path}"):
            RunDirectory.create(path)
    assert [*find_runs(tmp_path)] == [tmp_path / "r"]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "run.json").write_text("{}")  # another program's
    RunDirectory.create(tmp_path / "project" / "runs" / "r").release()


def test_only_one_process_writes(tmp_path: Path) -> None:
    held = RunDirectory.create(tmp_path / "r")
    Manifest(run_id="r").save(tmp_path / "r")
    with pytest.raises(RunDirectoryError, match="another process is writing"):
        RunDirectory.take_over(tmp_path / "r")
    held.release()
    RunDirectory.take_over(tmp_path / "r").release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunDirectoryError, match=f"can't write to {tmp_path}"):
        RunDirectory.create(tmp_path / "r")


def test_a_place_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="can't write to"):
        RunDirectory.create(tmp_path / "file" / "r")


@pytest.mark.parametrize("name", ["run.json", ".lock", "trace", "trace/steps", "checkpoints", "aside", "sharpness"])
def test_a_link_out_of_a_run_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "r", tmp_path / "outside"
    outside.mkdir()
    (outside / ".part-0000000000-0000000001.parquet.7.tmp").write_bytes(b"foreign")
    (outside / ".steps-compact-7").mkdir()
    (run / "trace").mkdir(parents=True)
    Manifest(run_id="r").save(run)
    if name == "trace":
        (run / name).rmdir()
    if name == "run.json":
        (run / name).rename(outside / name)
    (run / name).symlink_to(outside / (name if name in ("run.json", ".lock") else ""))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunDirectoryError, match=rf"{name} is a link.*nothing was changed: (remove the link|'tvlars)"):
        RunDirectory.take_over(run)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").symlink_to(tmp_path / "new")
    with pytest.raises(RunDirectoryError, match="lock is a link"):
        RunDirectory.create(tmp_path / "r")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_plain_file_is_refused_and_locked_by_nobody(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(RunDirectoryError, match=r"lock|can't write"):
        RunDirectory.hold(tmp_path)
    assert status(tmp_path, Manifest(run_id="r")) == "killed"


def test_only_leftovers_of_our_own_names_are_removed(tmp_path: Path) -> None:
    run, outside = tmp_path / "r", tmp_path / "outside"
    kept = ["steps/.notes.tmp", "foo/.part-0000000000-0000000001.parquet.7.tmp", "steps/a/.b.tmp", ".my-split-plan"]
    gone = ["steps/.part-0000000000-0000000001.parquet.7.tmp", ".layers-split-7/x", ".steps-compact-12/x"]
    gone += [".exchange-a-7/x", ".part-0000000000-0000000001.parquet.7.tmp"]
    for path in [*(run / "trace" / name for name in kept + gone), outside / "x"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (run / "trace" / ".steps-compact-13").symlink_to(outside, target_is_directory=True)
    Manifest(run_id="r").save(run)
    held = RunDirectory.hold(run)
    held.cut_back(0)
    held.release()
    assert [name for name in kept + gone if (run / "trace" / name).exists()] == kept
    assert (outside / "x").exists()


@pytest.mark.parametrize("told", ["completed", "diverged", "failed", "interrupted"])
def test_a_status_other_than_running_is_believed(tmp_path: Path, told: str) -> None:
    assert status(tmp_path, Manifest(run_id="r", status=told)) == told


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a/x", "a/y", ".hidden/z"):
        (tmp_path / name).mkdir(parents=True)
        Manifest(run_id=name).save(tmp_path / name)
    assert [p.relative_to(tmp_path).as_posix() for p in find_runs(tmp_path)] == ["a/x", "a/y", "b"]


def test_a_manifest_survives_a_round_trip(tmp_path: Path) -> None:
    manifest = Manifest(run_id="r", config={"lr": float("inf"), "path": Path("x")}, notes=["ünï"])
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded.config == {"lr": float("inf"), "path": "x"}
    assert loaded.notes == ["ünï"]
    json.loads((tmp_path / "run.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ('{"run_id": "r", "status', "can't be read"),
        ("[1, 2]", "has no run_id"),
        ('{"schema_version": 1}', "has no run_id"),
        ('{"run_id": "r", "schema_version": 99}', "schema version 99; this tvlars-probe reads up to 1: upgrade"),
        ('{"run_id": "r", "schema_version": null}', "schema version None"),
    ],
    ids=["empty", "cut short", "list", "foreign", "newer", "none"],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=message) as caught:
        Manifest.load(tmp_path)
    assert "run.json" in str(caught.value)


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 10**400])
@pytest.mark.parametrize("name", ["total_steps", "peak_lr", "best_test_acc1"])
def test_an_integer_beyond_64_bits_is_refused(tmp_path: Path, name: str, value: int) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "r", "schema_version": 1, name: value}))
    with pytest.raises(RunDirectoryError, match=r"run\.json can't be read: .* is too large; 'tvlars-probe check"):
        Manifest.load(tmp_path)


def test_a_step_beyond_int64_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "r", "schema_version": 1, "total_steps": 1 << 63}))
    with pytest.raises(RunDirectoryError, match="its total_steps is 9223372036854775808"):
        Manifest.load(tmp_path)


def test_a_users_huge_integer_is_kept_as_text(tmp_path: Path) -> None:
    Manifest(run_id="r", config={"hash": 1 << 100, "seed": (1 << 64) - 1}).save(tmp_path)
    assert Manifest.load(tmp_path).config == {"hash": str(1 << 100), "seed": (1 << 64) - 1}


def test_unknown_fields_of_a_manifest_are_passed_over(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"run_id": "r", "schema_version": 1, "from_the_future": 7}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert Manifest.load(tmp_path).run_id == "r"


def test_a_manifest_of_an_older_version_may_lack_what_is_not_required(tmp_path: Path) -> None:
    manifest = Manifest(run_id="r", groups=[{"optimizer": "LARS"}], parameters={"train": [{"name": "0.weight"}]})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path).groups == [{"optimizer": "LARS"}]
    manifest.groups = [{"lr": 1.0}]
    manifest.save(tmp_path)
    with pytest.raises(RunDirectoryError, match="its groups"):
        Manifest.load(tmp_path)
