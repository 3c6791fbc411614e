"""What the list knows of each run, and what it reads for it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.board.runs import HOSTILE, TrainedRun, damage, everything_below
from tvlars_probe.board import listing
from tvlars_probe.board.listing import RunList, refuse_leading_out
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path


def statuses(runs: RunList) -> dict[str, str]:
    return {run.name: run.status for run in runs.runs()}


def test_a_run_is_listed_with_its_figures(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "sweep" / "a", total=40, best_test_acc1=91.5)
    run.train(10, finding="the loss jumped").train(5)
    (listed,) = RunList(tmp_path).runs()
    run.end()
    assert (listed.name, listed.status, listed.error) == ("sweep/a", "running", None)
    assert (listed.done, listed.total, listed.loss, listed.accuracy) == (15, 40, 2 / 15, 91.5)
    assert (listed.optimizer, listed.lr, listed.batch_size, listed.findings) == ("LARS", 0.5, 8, 1)
    assert listed.created == run.manifest.created


def test_a_run_that_grows_ends_or_appears_is_seen_by_the_same_list(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(4)
    runs = RunList(tmp_path)
    assert statuses(runs) == {"a": "running"}
    run.train(4)
    assert runs.runs()[0].done == 8
    other = TrainedRun(tmp_path / "b").train(1)
    assert {*statuses(runs)} == {"a", "b"}
    run.end(None)
    assert statuses(runs) == {"a": "killed", "b": "running"}
    other.end("failed")
    assert statuses(runs)["b"] == "failed"
    shutil.rmtree(tmp_path / "b")
    assert {*statuses(runs)} == {"a"}


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        TrainedRun(tmp_path / name).train(3).end()
    runs = RunList(tmp_path)
    first = runs.runs()
    read: list[Path] = []
    load = Manifest.load
    monkeypatch.setattr(Manifest, "load", lambda path: read.append(path) or load(path))
    assert runs.runs() == first
    assert read == []
    manifest = json.loads((tmp_path / "a" / "run.json").read_text())
    (tmp_path / "a" / "run.json").write_text(json.dumps({**manifest, "best_test_acc1": 50.0}))
    assert {run.name: run.accuracy for run in runs.runs()} == {"a": 50.0, "b": None}
    assert read == [tmp_path / "a"]


def test_losses_that_there_is_no_time_to_read_are_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainedRun(tmp_path / "a").train(4)
    runs = RunList(tmp_path)
    monkeypatch.setattr(listing, "READING_SECONDS", -1.0)
    assert (runs.runs()[0].done, runs.runs()[0].loss, runs.is_behind) == (4, None, True)
    monkeypatch.setattr(listing, "READING_SECONDS", 60.0)
    assert (runs.runs()[0].loss, runs.is_behind) == (0.5, False)
    monkeypatch.setattr(listing, "READING_SECONDS", -1.0)
    assert (runs.runs()[0].loss, runs.is_behind) == (0.5, False)
    run.train(4).end()
    assert (runs.runs()[0].loss, runs.is_behind) == (0.5, True)


def test_a_damaged_run_is_listed_as_damaged(tmp_path: Path) -> None:
    damage(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_bytes(b"\xff\xfe")
    run = TrainedRun(tmp_path / "c").train(3).end()
    for part in (run / "trace" / "steps").iterdir():
        part.write_bytes(b"PAR1 no parquet PAR1")
    listed = {run.name: run for run in RunList(tmp_path).runs()}
    assert [listed[name].status for name in "abc"] == ["damaged", "damaged", "completed"]
    assert "can't be read" in str(listed["a"].error)
    assert listed["c"].loss is None


def test_the_findings_of_a_manifest_count_where_there_is_no_table(tmp_path: Path) -> None:
    bad = {"step": 3, "loss": None, "tensor": "w", "quantity": "grad_norm"}
    TrainedRun(tmp_path / "a", finding=bad).train(3).end("diverged")
    assert RunList(tmp_path).runs()[0].findings == 1


def test_a_run_itself_can_be_listed(tmp_path: Path) -> None:
    path = TrainedRun(tmp_path / "mine").train(3).end()
    runs = RunList(path)
    (listed,) = runs.runs()
    assert (listed.name, runs.find(listed.key)) == ("mine", path)


def test_a_key_stands_for_one_run_whatever_it_is_called(tmp_path: Path) -> None:
    names = ["a", "a b", "é", HOSTILE.replace("/", "|"), "x" * 200, "a..", "%2e%2e", "\udce9"]
    for name in names:
        TrainedRun(tmp_path / name).train(1).end()
    runs = RunList(tmp_path)
    listed = runs.runs()
    assert len({run.key for run in listed}) == len(names)
    assert all(run.key.isalnum() and runs.find(run.key) == run.path for run in listed)
    assert RunList(tmp_path).find(listed[0].key) == listed[0].path  # before anything was listed
    assert runs.find("0" * 20) is runs.find("../a") is None


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    outside = TrainedRun(tmp_path / "outside" / "run").train(3).end()
    folder = tmp_path / "runs"
    inside = TrainedRun(folder / "inside").train(3).end()
    (folder / "linked").symlink_to(outside)
    (folder / "manifest").mkdir()
    (folder / "manifest" / "run.json").symlink_to(outside / "run.json")
    borrowed = TrainedRun(folder / "borrowed").train(3).end()
    shutil.rmtree(borrowed / "trace")
    (borrowed / "trace").symlink_to(outside / "trace")
    listed = {run.name: run for run in RunList(folder).runs()}
    assert {name: run.status for name, run in listed.items()} == {
        "inside": "completed", "manifest": "damaged", "borrowed": "damaged"
    }  # fmt: skip
    assert "leads out" in str(listed["borrowed"].error)
    (inside / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(RunDirectoryError, match="leads out"):
        refuse_leading_out(folder, inside)


def test_a_link_within_the_folder_is_no_fault(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(3).end()
    (run / "notes").symlink_to(tmp_path / "a" / "run.json")
    refuse_leading_out(tmp_path, run)
    (listed,) = RunList(tmp_path).runs()
    assert (listed.status, listed.error) == ("completed", None)


def test_a_run_that_a_link_has_replaced_is_found_no_more(tmp_path: Path) -> None:
    outside = TrainedRun(tmp_path / "outside").train(3).end()
    folder = tmp_path / "runs"
    run = TrainedRun(folder / "group" / "a").train(3).end()
    runs = RunList(folder)
    (listed,) = runs.runs()
    shutil.rmtree(run.parent)
    (folder / "group").mkdir()
    run.symlink_to(outside)
    assert runs.find(listed.key) is None


def test_listing_writes_nothing(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(3)
    before = everything_below(tmp_path)
    RunList(tmp_path).runs()
    assert everything_below(tmp_path) == before
    run.end()
