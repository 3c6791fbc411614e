from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory, find_runs, status


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
