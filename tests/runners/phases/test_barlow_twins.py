"""Whole runs of Barlow Twins and its linear probe, in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

import tvlars_probe
from tests.optimizers.test_registry import NAMES
from tests.ranked import cli_on_ranks
from tests.runners.test_ranks import assert_runs_agree
from tvlars_probe.data import fashion_mnist
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import MODELS, ModelConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import SCHEDULES, ScheduleConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.phase import phase_named
from tvlars_probe.runners.train import resume, train

if TYPE_CHECKING:
    from pathlib import Path


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": DataConfig(limit=70),
        "mode": "bt",
        "batch_size": 32,
        "epochs": 2,
        "place": PlaceConfig(devices=("cpu",), threads=1),
        "barlow": BarlowTwinsConfig(epochs=3, projector="16-16", probe_batch_size=40),
        "optimizer": OptimizerConfig(lr=1.0),
        **changes,
    }
    return TrainConfig(**settings)


def run(path: Path, **changes: Any) -> tvlars_probe.Run:
    return tvlars_probe.open_run(train(config(**changes), path, quiet=True))


def test_one_run_one_trace_two_phases(tmp_path: Path) -> None:
    result = run(tmp_path / "r")
    steps, epochs, layers, m = result.steps(), result.epochs(), result.layers(), result.manifest
    assert steps["step"].tolist() == list(range(13))
    assert steps["phase"].tolist() == ["pretrain"] * 9 + ["linear"] * 4
    assert steps["epoch"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 2 + [1] * 2
    assert steps["lr"].tolist()[9:] == pytest.approx([0.3 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)])
    assert epochs["phase"].tolist() == ["pretrain"] * 3 + ["linear"] * 2
    assert epochs["test_acc5"].notna().tolist() == [False] * 3 + [True] * 2
    by_phase = {phase: {*layers[layers.step.isin(steps[steps.phase == phase].step)].parameter}
                for phase in ("pretrain", "linear")}  # fmt: skip
    assert by_phase["linear"] == {"head.weight", "head.bias"}
    assert {"backbone.0.weight", "projector.0.weight"} <= by_phase["pretrain"]
    assert [*m.parameters] == ["pretrain", "linear"]
    assert [(g["optimizer"], g["phase"]) for g in m.groups] == [("LARS", "pretrain"), ("SGD", "linear")]
    assert [(p["phase"], p["first_step"], p["epochs"], p["batch_size"]) for p in m.phases] == [
        ("pretrain", 0, 3, 32), ("linear", 9, 2, 40)
    ]  # fmt: skip
    assert m.total_steps == 13
    assert 9 in checkpoints.list_checkpoints(result.path)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", NAMES)
def test_every_optimizer_pretrains_under_every_schedule(optimizer: str, schedule: str, tmp_path: Path) -> None:
    result = run(
        tmp_path / "r",
        optimizer=OptimizerConfig(name=optimizer, lr=0.01),
        schedule=ScheduleConfig(name=schedule),
        barlow=BarlowTwinsConfig(epochs=1, projector="8-8"),
        epochs=1,
        recording=RecordConfig(train_eval_samples=0),
    )
    assert result.status == "completed"
    assert result.layers()["update_norm"].notna().all()


@pytest.mark.parametrize("mode", ["clf", "bt"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_in_every_mode(model: str, mode: str, tmp_path: Path) -> None:
    result = run(tmp_path / "r", model=ModelConfig(name=model), mode=mode, epochs=1, data=DataConfig(limit=32),
                 barlow=BarlowTwinsConfig(epochs=1, projector="8-8"), recording=RecordConfig(train_eval_samples=0),
                 optimizer=OptimizerConfig(name="sgd", lr=0.001))  # fmt: skip
    assert result.status == "completed"


@pytest.mark.parametrize("step", [6, 9, 11], ids=["while pretraining", "between", "while probing"])
def test_a_run_cut_in_either_phase_ends_in_the_same_bits(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    save = checkpoints.save

    def save_and_die(path: Path, at: int, state: dict[str, Any]) -> Path:
        written = save(path, at, state)
        if at == step:
            raise Killed
        return written

    monkeypatch.setattr(checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        run(tmp_path / "cut")
    monkeypatch.setattr(checkpoints, "save", save)
    result = tvlars_probe.open_run(resume(tmp_path / "cut", quiet=True))
    assert result.status == "completed"
    for table in ("steps", "layers", "epochs"):
        clocks = ["run", "time", "step_seconds", "probe_seconds", "seconds"]
        a, b = (r.frame(table).drop(columns=clocks, errors="ignore") for r in (whole, result))
        assert a.astype(str).equals(b.astype(str)), table
    assert result.manifest.parameters == whole.manifest.parameters
    assert result.manifest.groups == whole.manifest.groups


def test_two_ranks_pretrain_as_one(tmp_path: Path) -> None:
    """The last of each epoch's batches is odd, and the probe's BatchNorm is trained too."""
    for name, nproc in (("one", 1), ("two", 2)):
        cli_on_ranks(
            nproc, "train", "--mode", "bt", "--limit", 69, "--bs", 33, "--cl_epochs", 2, "--epochs", 2, "--lr", 1,
            "--dv", "cpu", "--projector", "16-16", "--precision", "float64", "--probe-batch-size", 33,
            "--lr_backbone", 0.01, "--train-eval-samples", 10, "--run-dir", name, cwd=tmp_path,
        )  # fmt: skip
    one, two = (tvlars_probe.open_run(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.steps()["loss"], two.steps()["loss"], rtol=1e-8)
    for column in ("weight_norm", "grad_norm", "trust_ratio"):
        np.testing.assert_allclose(one.layers()[column], two.layers()[column], rtol=1e-5)
    np.testing.assert_allclose(one.epochs()["train_loss"], two.epochs()["train_loss"], rtol=1e-8)


def test_synchronised_batch_norm_makes_two_ranks_train_as_one(tmp_path: Path) -> None:
    for name, nproc in (("one", 1), ("two", 2)):
        cli_on_ranks(
            nproc, "train", "--limit", 53, "--bs", 25, "--epochs", 1, "--model", "resnet18", "--opt", "sgd",
            "--lr", 0.01, "--sync-bn", "--dv", "cpu", "--precision", "float64", "--train-eval-samples", 10,
            "--run-dir", name, cwd=tmp_path,
        )  # fmt: skip
    assert_runs_agree(tmp_path / "one", tmp_path / "two", 1e-6)
    assert tvlars_probe.open_run(tmp_path / "two").manifest.bn_batch_size == 25


def test_sharpness_is_measured_in_both_phases(tmp_path: Path) -> None:
    operators = ("hessian", "ggn")
    result = run(tmp_path / "r", sharpness=SharpnessConfig(every="4", samples=24, operators=operators))
    curvature = result.frame("curvature")
    assert curvature["step"].tolist() == [0, 0, 4, 4, 8, 8, 12, 12]
    assert curvature["phase"].tolist() == ["pretrain"] * 6 + ["linear"] * 2
    assert curvature["converged"].all()
    # The linear probe's outputs are linear in its weights: there the two are one.
    last = curvature[curvature["phase"] == "linear"]["value"].tolist()
    assert last[0] == pytest.approx(last[1], rel=2e-3)
    plain = run(tmp_path / "plain")
    assert plain.steps()["loss"].tolist() == result.steps()["loss"].tolist()


def test_a_phases_first_measurement_has_no_effective_operator(tmp_path: Path) -> None:
    """Its optimizer has applied no rates yet."""
    curvature = run(tmp_path / "r", sharpness=SharpnessConfig(every="1", samples=24)).frame("curvature")
    assert curvature["converged"].all()
    without = {*range(13)} - {*curvature["step"][curvature["operator"] == "effective"]}
    assert without == {0, 9}


def test_sharpness_is_measured_at_the_checkpoints_of_both_phases(cli: Any, tmp_path: Path) -> None:
    result = run(tmp_path / "r")
    done = cli("sharpness", result.path, "--checkpoint", "all", "--samples", 24, "--bn", "eval", "--devices", "cpu")
    assert done.code == 0, done.err
    frame = pd.read_parquet(result.path / "sharpness")
    assert {*frame["phase"].astype(str)} == {"pretrain", "linear"}
    assert np.isfinite(frame["value"]).all()


@pytest.mark.parametrize(("name", "step"), [("pretrain", 9), ("linear", 13)])
def test_model_and_loss_are_rebuilt_from_the_manifest(tmp_path: Path, name: str, step: int) -> None:
    result = run(tmp_path / "r")
    stored = TrainConfig.from_dict(result.manifest.config)
    phase, data = phase_named(name, stored), stored.data.load()
    model = phase.build_model(data)
    model.load_state_dict(checkpoints.load(checkpoints.list_checkpoints(result.path)[step])["model"])
    loss = phase.probe_loss(model, phase.probe_batch(data.train, np.arange(20), torch.float32))
    assert loss.ndim == 0
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "simclr"}, r"unknown --mode 'simclr' \(known: clf, bt\)"),
        ({"micro_batch": 8}, "--micro-batch can't be used with --mode bt"),
        ({"schedule": ScheduleConfig(name="lars-warm", warmup_epochs=3)}, "use fewer than --cl-epochs 3"),
        ({"batch_size": 69}, "smallest piece on a rank is 1 of 70 samples"),
        (
            {
                "model": ModelConfig(name="resnet18"),
                "barlow": BarlowTwinsConfig(epochs=3, projector="16-16", lr_backbone=0.1, probe_batch_size=69),
            },
            r"smallest piece on a rank is 1 of 70 samples \(--probe-batch-size 69\)",
        ),
    ],
)
def test_what_cannot_be_pretrained_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "r", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector": "64,64"}, "--projector '64,64': give the widths"),
        ({"epochs": 0}, "--cl-epochs 0 is too few"),
        ({"lmbda": -1.0}, "--btlmbda -1"),
        ({"lr_classifier": float("inf")}, "--lr-classifier inf"),
        ({"probe_batch_size": 0}, "--probe-batch-size 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BarlowTwinsConfig(**settings)


@pytest.mark.slow
@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.exists(), reason="Debian's dataset-fashion-mnist isn't installed")
def test_pretraining_on_fashion_mnist_beats_a_random_backbone(tmp_path: Path) -> None:
    """The same linear probe on the same network, pretrained for 5 epochs of 1,500 images or for next to nothing."""
    learned = config(
        data=DataConfig(name="fashion-mnist", limit=1500),
        batch_size=256,
        epochs=12,
        barlow=BarlowTwinsConfig(epochs=5, projector="256-256", lr_classifier=0.3),
        optimizer=OptimizerConfig(name="adamw", lr=2e-3),
        recording=RecordConfig(detail="none", train_eval_samples=0, checkpoint_every=0),
    )
    untrained = replace(
        learned, barlow=replace(learned.barlow, epochs=1), optimizer=OptimizerConfig(name="sgd", lr=0.0)
    )
    accuracies = []
    for name, chosen in (("learned", learned), ("random", untrained)):
        result = tvlars_probe.open_run(train(chosen, tmp_path / name, quiet=True))
        accuracies.append(result.epochs()["test_acc1"].iloc[-1])
    assert accuracies[0] > accuracies[1] + 3, accuracies
