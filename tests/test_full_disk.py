"""A disk that is full, at every write of a run: nothing complete is lost, nothing half stands under a final name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

import tvlars_probe
from tests.faults import SmallDisk, Writes, small_disk
from tests.runners.resumed import assert_same_run, use_small_model
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import RunDirectoryError, StorageError, UserError
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.checking import check_run, repair_run
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.train import resume, train
from tvlars_probe.traces import run_directory, writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = TrainConfig(
    data=DataConfig(limit=64),
    optimizer=OptimizerConfig(name="tvlars", lr=4.0),
    place=PlaceConfig(devices=("cpu",), threads=1),
    recording=RecordConfig(checkpoint_steps=3, train_eval_samples=16),
    sharpness=SharpnessConfig(every="2", operators=("hessian",), samples=16, tol=0.1),
    batch_size=32,
    epochs=2,
)


@pytest.fixture(params=["tmpfs", pytest.param("quota", marks=pytest.mark.slow)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", request.param) as made:
        yield made


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_model(monkeypatch)


def attempt(disk: SmallDisk, path: Path, full_at: int | None, **changes: Any) -> Writes:
    """Train with the disk full at the write of that number; the error must be one for users, and short."""
    with pytest.MonkeyPatch.context() as patches:
        writes = Writes(patches, disk, full_at)
        try:
            train(CONFIG, path, quiet=True)
        except (StorageError, UserError) as error:
            message = str(error)
            assert "No space left on device" in message or "File too large" in message
            assert str(path) in message
        else:
            # Only the merging of a finished run's parts may fail unnoticed: they stay as small as they are.
            assert writes.failed is None or tvlars_probe.open_run(path).status == "completed", "nothing was said"
    disk.free()
    return writes


def assert_what_is_there_is_whole(path: Path) -> None:
    for part in path.rglob("part-*.parquet"):
        pq.read_table(part)
    for checkpoint in checkpoints.list_checkpoints(path).values():
        checkpoints.load(checkpoint)
    assert not list(path.rglob("*.tmp"))
    run = tvlars_probe.open_run(path)
    steps = run.steps()["step"].tolist()
    assert steps == list(range(len(steps)))
    assert run.status in ("failed", "killed")


@pytest.mark.usefixtures("small_model")
def test_at_every_write_of_a_run(disk: SmallDisk, tmp_path: Path) -> None:
    whole = train(CONFIG, tmp_path / "whole", quiet=True)
    names = attempt(disk, disk.folder / "counted", None).names
    assert {name.split("-")[0] for name in names} == {"run.json", "part", "step"}
    for full_at, name in enumerate(names):
        path = disk.folder / f"r{full_at}"
        writes = attempt(disk, path, full_at)
        assert writes.failed == name
        if full_at == 0:
            assert not path.exists()  # nothing was recorded: nothing is left
            continue
        if tvlars_probe.open_run(path).status != "completed":
            assert_what_is_there_is_whole(path)
            resume(path, quiet=True)
        assert_same_run(whole, path)


def test_while_a_run_is_cut_back(disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that hold steps on both sides of the checkpoint have to be split."""
    whole = train(CONFIG, tmp_path / "whole", quiet=True)
    path = train(CONFIG, disk.folder / "r", quiet=True)
    manifest = tvlars_probe.open_run(path).manifest
    manifest.status = "interrupted"
    manifest.save(path)
    (path / "checkpoints" / "step-4.pt").unlink()
    made = writer.TraceWriter(path / "trace", manifest.run_id)
    for table in ("steps", "layers"):
        made._pending[table] = []
        assert made.compact(table)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}
    for full_at in (0, 1, 2, 1):  # two writes a table; after the third attempt the first table is cut
        with pytest.MonkeyPatch.context() as patches, pytest.raises(UserError, match="nothing is lost"):
            Writes(patches, disk, full_at)
            resume(path, quiet=True)
        disk.free()
        there = tvlars_probe.open_run(path).steps()["step"].tolist()
        assert there == list(range(len(there)))
    kept = {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert all(name.name in kept for name in before)
    resume(path, quiet=True)
    assert_same_run(whole, path)


def test_while_parts_are_merged_they_stay_as_they_are(disk: SmallDisk) -> None:
    made = writer.TraceWriter(disk.folder / "trace", "r")
    for step in range(4):
        made.append("steps", {"step": [step]})
        made.flush()
    with pytest.MonkeyPatch.context() as patches:
        Writes(patches, disk, 0)
        assert not made.compact("steps")
    disk.free()
    assert made.compact("steps")


def test_while_a_run_is_made_or_repaired(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = train(CONFIG, disk.folder / "r", quiet=True)
    part = next((path / "trace" / "steps").iterdir())
    part.write_bytes(b"")
    before = (path / "run.json").read_bytes()
    with pytest.MonkeyPatch.context() as patches, pytest.raises(RunDirectoryError, match="can't be repaired"):
        Writes(patches, disk, 0)
        repair_run(path, check_run(path))
    disk.free()
    assert (path / "run.json").read_bytes() == before
    assert [p.name for p in path.glob("aside/*/trace/steps/*")] == [part.name]
    acquire = run_directory._acquire

    def on_full_disk(where: Path) -> int | None:
        disk.fill()
        return acquire(where)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patches:
        patches.setattr(run_directory, "_acquire", on_full_disk)
        with pytest.raises((StorageError, UserError)):
            train(CONFIG, disk.folder / "new", quiet=True)
    disk.free()
    assert not (disk.folder / "new" / "run.json").exists()
    train(CONFIG, disk.folder / "new", quiet=True)


def test_measurements_and_answers_that_cannot_be_written(disk: SmallDisk, cli: Any) -> None:
    path = train(CONFIG, disk.folder / "r", quiet=True)
    commands = (
        ["sharpness", path, "--samples", 16, "--tol", 0.1, "--devices", "cpu", "--threads", 1],
        ["landscape", path, "--samples", 16, "--points", 3, "--devices", "cpu"],
        ["compare", path, "-o", disk.folder / "answer.csv"],
        ["report", path, "-o", disk.folder / "report.html"],
        ["chart", "loss", path, "-o", disk.folder / "chart.svg"],
    )
    for words in commands:
        assert cli(*words).code == 0, words
        made = {p: p.read_bytes() for p in disk.folder.rglob("*") if p.is_file()}
        disk.fill()
        outcome = cli(*words)
        disk.free()
        assert outcome.code in (1, 2), words
        assert outcome.err.startswith("Error: ")
        assert len(outcome.err.splitlines()) == 1, outcome.err
        assert "No space left" in outcome.err or "File too large" in outcome.err
        assert {p: p.read_bytes() for p in disk.folder.rglob("*") if p.is_file()} == made, words
