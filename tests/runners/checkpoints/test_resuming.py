"""Runs stopped at any place, in this process, and continued."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tests.runners.resumed import assert_same_run, use_small_model
from tvlars_probe.curvature.measures import IN_TRAINING
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import DataError, InterruptedRunError, RunDirectoryError
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints import saver as saving
from tvlars_probe.runners.checkpoints.checking import check_run
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.loop import Training
from tvlars_probe.runners.train import resume, train

if TYPE_CHECKING:
    from pathlib import Path


def config(**changes: Any) -> TrainConfig:
    """Four steps an epoch, three epochs; dropout, so that the random generators have to be right."""
    settings: dict[str, Any] = {
        "data": DataConfig(limit=100),
        "optimizer": OptimizerConfig(name="tvlars", lr=4.0),
        "place": PlaceConfig(devices=("cpu",), threads=1),
        "recording": RecordConfig(checkpoint_every=0),
        "sharpness": SharpnessConfig(every="3", operators=("hessian",), measures=IN_TRAINING, samples=32, tol=0.05),
        "batch_size": 32,
        "epochs": 3,
        **changes,
    }
    return TrainConfig(**settings)


TWINS: dict[str, Any] = {
    "mode": "bt",
    "optimizer": OptimizerConfig(name="lars", lr=1.0, excluded_lr=0.01),
    "barlow": BarlowTwinsConfig(epochs=2, projector="8-8", probe_batch_size=32),
    "epochs": 2,
}


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_model(monkeypatch)


def signalling(patches: pytest.MonkeyPatch, method: str, at: int | None, number: int) -> None:
    """Send this process a signal in the call ``at``, counted from 0 over all phases, of a method of the training."""
    counter = itertools.count()

    def before(call: Any) -> Any:
        def called(self: Training, *args: Any) -> Any:
            if next(counter) == at:
                os.kill(os.getpid(), number)
            return call(self, *args)

        return called

    patches.setattr(Training, method, before(getattr(Training, method)))


def interrupt(
    settings: TrainConfig,
    path: Path,
    *,
    update: int | None = None,
    evaluation: int | None = None,
    number: int = signal.SIGTERM,
) -> int:
    """Train until the signal comes; returns the updates that are recorded."""
    with pytest.MonkeyPatch.context() as patches:
        signalling(patches, "update", update, number)
        signalling(patches, "end_epoch", evaluation, number)
        with pytest.raises(InterruptedRunError, match=f"--resume {path}") as caught:
            train(settings, path, quiet=True)
    run = tvlars_probe.open_run(path)
    assert run.status == "interrupted"
    steps = run.steps()["step"].tolist()
    assert steps == list(range(len(steps)))
    assert [*checkpoints.list_checkpoints(path)][-1] == len(steps)
    assert caught.value.signal == number
    return len(steps)


@pytest.mark.parametrize(
    "update", [0, 5, 7, 11], ids=["in the first step", "within an epoch", "in its last step", "in the run's last step"]
)
def test_a_signal_ends_a_run_after_the_step_and_it_goes_on_to_the_same_bits(tmp_path: Path, update: int) -> None:
    settings = config()
    train(settings, tmp_path / "whole", quiet=True)
    assert interrupt(settings, tmp_path / "cut", update=update, number=signal.SIGINT) == update + 1
    train(settings, tmp_path / "cut", quiet=True)  # the same command
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_during_an_evaluation_ends_the_run_behind_it(tmp_path: Path) -> None:
    settings = config()
    train(settings, tmp_path / "whole", quiet=True)
    assert interrupt(settings, tmp_path / "cut", evaluation=1) == 8
    resume(tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("update", [2, 7, 13], ids=["pretraining", "at the seam", "in the probe"])
def test_both_phases_of_barlow_twins_go_on(tmp_path: Path, update: int) -> None:
    settings = config(**TWINS)
    train(settings, tmp_path / "whole", quiet=True)
    assert interrupt(settings, tmp_path / "cut", update=update) == update + 1
    resume(tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_interrupted_again_and_again_is_the_same(tmp_path: Path) -> None:
    settings = config()
    train(settings, tmp_path / "whole", quiet=True)
    made = 0
    while made < 11:
        made = interrupt(settings, tmp_path / "cut", update=1)
    train(settings, tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert len(tvlars_probe.open_run(tmp_path / "cut").manifest.segments) == 7


def test_checkpoints_every_so_many_steps_and_as_many_kept_as_asked(tmp_path: Path) -> None:
    kept = {}
    for keep in (1, 3, 0):
        recording = RecordConfig(checkpoint_steps=5, keep_checkpoints=keep, train_eval_samples=0)
        path = train(config(recording=recording), tmp_path / str(keep), quiet=True)
        best = tvlars_probe.open_run(path).manifest.best
        assert best is not None
        kept[keep] = {*checkpoints.list_checkpoints(path)} - {best["step"]}
    made = {4, 5, 8, 10, 12}
    assert kept[0] == made - ({4, 8, 12} - kept[0])
    assert kept[1] <= {12}
    assert kept[3] <= {8, 10, 12}
    assert {5, 10} <= kept[0]


def test_checkpoints_by_the_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by 25 seconds whenever it is read."""
    clock = itertools.count(0.0, 25.0)
    monkeypatch.setattr(saving, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    saved = []
    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda path, step, state: (saved.append(step), save(path, step, state))[1])
    train(config(recording=RecordConfig(checkpoint_every=0, checkpoint_minutes=1.0)), tmp_path / "r", quiet=True)
    assert saved == [3, 6, 9, 12]


def test_what_is_checkpointed_makes_no_difference(tmp_path: Path) -> None:
    train(config(), tmp_path / "whole", quiet=True)
    train(config(recording=RecordConfig(checkpoint_steps=1)), tmp_path / "often", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "often")


def test_an_epochs_row_written_after_the_checkpoint_does_not_stand_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the row's flush and the checkpoint that follows it, with one from before the evaluation there."""
    settings = config()
    train(settings, tmp_path / "whole", quiet=True)
    interrupt(settings, tmp_path / "cut", update=7)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patches, pytest.raises(Killed):
        patches.setattr(checkpoints, "save", die)
        train(config(recording=RecordConfig()), tmp_path / "cut", quiet=True)
    assert tvlars_probe.open_run(tmp_path / "cut").epochs()["step"].tolist() == [4, 8]
    resume(tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_rows_after_the_checkpoint_are_moved_aside_not_deleted(tmp_path: Path) -> None:
    path = train(config(recording=RecordConfig(keep_checkpoints=0)), tmp_path / "r", quiet=True)
    manifest = tvlars_probe.open_run(path).manifest
    manifest.status = "interrupted"
    manifest.save(path)
    (path / "checkpoints" / "step-12.pt").unlink()
    resume(path, quiet=True)
    aside = [p.parent.name for p in path.glob("aside/from-8-*/*/part-*.parquet")]
    assert {*aside} == {"steps", "layers", "epochs", "curvature"}


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    settings = config()
    interrupt(settings, tmp_path / "cut", update=1)
    path = tmp_path / "cut" / "checkpoints" / "step-2.pt"
    state = checkpoints.load(path)
    state["model"] = {"0.weight": torch.zeros(3)}
    torch.save(state, path)
    with pytest.raises(RunDirectoryError, match=r"it has rates of tensors that the model hasn't.*check .* --repair"):
        train(settings, tmp_path / "cut", quiet=True)
    state["optimizer"] = {"state": {}, "param_groups": []}
    state["model"] = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).state_dict()
    torch.save(state, path)
    with pytest.raises(RunDirectoryError, match=r"its optimizer's parameter groups are others\): move it away"):
        train(settings, tmp_path / "cut", quiet=True)
    assert tvlars_probe.open_run(tmp_path / "cut").status == "interrupted"


def test_settings_edited_in_a_manifest_are_refused(tmp_path: Path) -> None:
    interrupt(config(), tmp_path / "cut", update=5)
    manifest = tvlars_probe.open_run(tmp_path / "cut").manifest
    manifest.config["seed"] = 7
    manifest.save(tmp_path / "cut")
    with pytest.raises(
        RunDirectoryError, match=r"cut/run.json holds other settings \(config_id \w+\) than the run began"
    ):
        resume(tmp_path / "cut", quiet=True)
    assert tvlars_probe.open_run(tmp_path / "cut").status == "interrupted"


def test_a_run_directory_starts_no_download(tmp_path: Path) -> None:
    interrupt(config(), tmp_path / "cut", update=5)
    manifest = tvlars_probe.open_run(tmp_path / "cut").manifest
    manifest.config["data"] |= {"name": "cifar10", "folder": str(tmp_path / "new"), "download": True, "limit": None}
    manifest.save(tmp_path / "cut")
    with pytest.raises(DataError, match="is not there; fetch it with --download"):
        resume(tmp_path / "cut", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_part_missing_in_the_middle_is_a_gap_of_the_run_that_goes_on(tmp_path: Path) -> None:
    settings = config(recording=RecordConfig(checkpoint_steps=2))
    interrupt(settings, tmp_path / "cut", update=7)
    parts = sorted((tmp_path / "cut" / "trace" / "steps").iterdir())
    assert len(parts) > 2
    parts[1].unlink()
    resume(tmp_path / "cut", quiet=True)
    run = tvlars_probe.open_run(tmp_path / "cut")
    gone = sorted({*range(12)} - {*run.steps()["step"]})
    assert [(gap.table, gap.first_step, gap.last_step) for gap in run.manifest.gaps] == [("steps", gone[0], gone[-1])]
    assert not check_run(tmp_path / "cut").faults
