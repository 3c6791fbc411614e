"""Training runs in this process, on one rank."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.optimizers.test_registry import NAMES
from tests.runners.resumed import use_small_model
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import ProbeError, RunDirectoryError, UserError
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig
from tvlars_probe.optimizers.schedules import SCHEDULES, ScheduleConfig
from tvlars_probe.probes.sharpness import SharpnessProbe
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.train import resume, train

CPU = PlaceConfig(devices=("cpu",), threads=1)


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"data": DataConfig(limit=100), "batch_size": 32, "epochs": 2, "place": CPU, **changes}
    return TrainConfig(**settings)


def run(path: Path, **changes: Any) -> tvlars_probe.Run:
    return tvlars_probe.open_run(train(config(**changes), path, quiet=True))


def last_weights(path: Path) -> dict[str, torch.Tensor]:
    newest = list(checkpoints.list_checkpoints(path).values())[-1]
    weights: dict[str, torch.Tensor] = checkpoints.load(newest)["model"]
    return weights


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", NAMES)
def test_every_optimizer_trains_under_every_schedule(optimizer: str, schedule: str, tmp_path: Path) -> None:
    chosen, model = OptimizerConfig(name=optimizer), ModelConfig(name="mlp" if OPTIMIZERS[optimizer].rests else "cnn")
    result = run(tmp_path / "r", optimizer=chosen, model=model, schedule=ScheduleConfig(name=schedule), epochs=1)
    assert result.status == "completed"
    assert len(result.steps()) == 4
    assert result.layers()["update_norm"].notna().all()


def test_the_trace_of_a_run(tmp_path: Path) -> None:
    result = run(tmp_path / "r", schedule=ScheduleConfig(name="lars-warm", warmup_epochs=0.5))
    steps, epochs, m = result.steps(), result.epochs(), result.manifest
    assert steps["step"].tolist() == list(range(8))
    assert steps["epoch"].tolist() == [0] * 4 + [1] * 4
    assert steps["samples"].tolist() == [32, 64, 96, 100, 132, 164, 196, 200]
    assert steps["phase"].unique().tolist() == ["train"]
    schedule = m.config["schedule"]
    assert schedule["warmup_epochs"] == 0.5
    assert steps["lr"].tolist()[:3] == pytest.approx([0.0, 5 * 32 / 256 / 2, 5 * 32 / 256])
    assert m.peak_lr == pytest.approx(5 * 32 / 256)
    assert epochs["step"].tolist() == [4, 8]
    assert epochs[["train_loss", "train_eval_loss", "test_loss", "test_acc1", "test_acc5"]].notna().all(axis=None)
    assert epochs["val_loss"].isna().all()
    assert (m.batch_size, m.world_size, m.micro_batches, m.bn_batch_size) == (32, 1, 1, 32)
    assert (m.steps_per_epoch, m.total_steps) == (4, 8)
    assert m.data is not None
    assert m.data["train"] == 100
    assert m.seed == 0
    assert m.final["epoch"] == 1
    assert m.best_test_acc1 == epochs["test_acc1"].max()
    assert result.layers().groupby("step").size().tolist() == [5] * 8
    assert list(result.layers()["parameter"].unique()) == ["0.weight", "2.weight", "4.weight", "8.weight", "8.bias"]


def test_one_seed_gives_one_run_and_another_another(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    losses = [r.steps()["loss"].tolist() for r in runs]
    assert losses[0] == losses[1] != losses[2]
    weights = [last_weights(r.path) for r in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_what_is_recorded_makes_no_difference(tmp_path: Path) -> None:
    weights = []
    for detail, every, optimizer in (("full", 1, "adamw"), ("none", 1, "adamw"), ("norms", 3, "adamw")):
        recording = RecordConfig(detail=detail, every=every, train_eval_samples=0 if detail == "none" else 50)
        result = run(tmp_path / detail, recording=recording, optimizer=OptimizerConfig(name=optimizer))
        weights.append(last_weights(result.path))
    assert all(torch.equal(weights[0][k], other[k]) for other in weights[1:] for k in weights[0])


@pytest.mark.parametrize("micro_batch", [10, 31])
def test_micro_batches_make_the_same_updates(tmp_path: Path, micro_batch: int) -> None:
    frames = []
    for name, size in (("whole", None), ("pieces", micro_batch)):
        result = run(tmp_path / name, micro_batch=size, precision="float64")
        frames.append((result.steps()["loss"].to_numpy(), last_weights(result.path)))
    np.testing.assert_allclose(frames[0][0], frames[1][0], rtol=1e-10)
    for key, value in frames[0][1].items():
        torch.testing.assert_close(frames[1][1][key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("bf16", torch.float32)])
def test_precisions(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    result = run(tmp_path / "r", precision=precision)
    exact = run(tmp_path / "exact")
    assert {w.dtype for w in last_weights(result.path).values()} == {dtype}
    losses = result.steps()["loss"].to_numpy(), exact.steps()["loss"].to_numpy()
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_held_out_data_is_evaluated_and_chooses_the_best(tmp_path: Path) -> None:
    result = run(tmp_path / "r", data=DataConfig(val=0.2))
    assert result.epochs()["val_acc1"].notna().all()
    assert result.manifest.best is not None
    assert result.manifest.best["metric"] == "val_acc1"
    assert result.manifest.data is not None
    assert (result.manifest.data["train"], result.manifest.data["val"]) == (1149, 288)


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    result = run(tmp_path / "r", epochs=6)
    accuracies = result.epochs()["test_acc1"].tolist()
    best = 4 * (accuracies.index(max(accuracies)) + 1)
    assert [*checkpoints.list_checkpoints(result.path)] == sorted({best, 24})
    assert result.manifest.best == {"step": best, "metric": "test_acc1", "value": max(accuracies)}


def test_checkpoints_only_at_the_end(tmp_path: Path) -> None:
    result = run(tmp_path / "r", epochs=3, recording=RecordConfig(checkpoint_every=0))
    assert [*checkpoints.list_checkpoints(result.path)] == [12]


def test_a_checkpoint_is_the_state_and_plain_values(tmp_path: Path) -> None:
    result = run(tmp_path / "r")
    state = torch.load(result.path / "checkpoints" / "step-8.pt", weights_only=True)
    assert state["step"] == state["recorder"]["step"] == 8
    layers = result.layers(steps=(7, 7)).set_index("parameter")
    for name, rate in state["recorder"]["rates"].items():
        assert rate == pytest.approx(layers.loc[name, "lr"] * layers.loc[name, "trust_ratio"], rel=1e-6)
    assert {"model", "optimizer", "scheduler", "rng", "best", "config", "epochs"} <= state.keys()


@pytest.mark.parametrize("optimizer", ["tvlars", "lamb", "adamw"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, so that the random generators have to be right too."""
    use_small_model(monkeypatch)
    settings: dict[str, Any] = {
        "optimizer": OptimizerConfig(name=optimizer), "epochs": 5, "micro_batch": 16,
        "recording": RecordConfig(noise=True),
    }  # fmt: skip
    whole = run(tmp_path / "whole", **settings)

    class Killed(BaseException):
        pass

    save = checkpoints.save

    def save_and_die(path: Path, step: int, state: dict[str, Any]) -> Path:
        written = save(path, step, state)
        if step == 12:
            raise Killed
        return written

    monkeypatch.setattr(checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **settings)
    monkeypatch.setattr(checkpoints, "save", save)
    result = tvlars_probe.open_run(resume(tmp_path / "cut", quiet=True))
    assert result.status == "completed"
    for table in ("steps", "layers", "epochs", "noise"):
        clocks = ["run", "time", "step_seconds", "probe_seconds", "seconds"]
        a, b = (r.frame(table).drop(columns=clocks, errors="ignore") for r in (whole, result))
        assert a.equals(b), table
    weights = last_weights(whole.path), last_weights(result.path)
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert len(result.manifest.segments) == 2


def test_the_same_command_again_trains_nothing_or_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "r")
    stamp = (first.path / "run.json").stat().st_mtime_ns
    assert run(tmp_path / "r").path == first.path
    assert (first.path / "run.json").stat().st_mtime_ns == stamp
    manifest = first.manifest
    manifest.status = "interrupted"
    manifest.save(first.path)
    assert run(tmp_path / "r").status == "completed"
    with pytest.raises(RunDirectoryError, match="holds a run with other settings"):
        run(tmp_path / "r", seed=9)
    again = train(config(), tmp_path / "r", rerun=True, quiet=True)
    assert again == tmp_path / "r-2"
    manifest.status = "failed"
    manifest.save(first.path)
    with pytest.raises(RunDirectoryError, match=r"failed .*--resume"):
        run(tmp_path / "r")


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    first = run(tmp_path / "r")
    losses = first.steps()["loss"].tolist()
    for path in (first.path / "checkpoints").iterdir():
        path.unlink()
    first.manifest.status = "running"  # and nobody holds its lock
    first.manifest.save(first.path)
    result = run(tmp_path / "r")
    assert result.status == "completed"
    assert result.steps()["loss"].tolist() == losses
    assert result.steps()["step"].tolist() == list(range(8))


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "r")
    first.manifest.status = "interrupted"
    assert first.manifest.data is not None
    first.manifest.data["fingerprint"] = "other"
    first.manifest.save(first.path)
    with pytest.raises(UserError, match="was trained on other data"):
        resume(first.path, quiet=True)


def test_a_loss_that_is_not_finite_ends_the_run_as_a_finding(tmp_path: Path) -> None:
    result = run(tmp_path / "r", optimizer=OptimizerConfig(name="sgd", lr=1e12))
    assert result.status == "diverged"
    finding = result.manifest.finding
    assert finding is not None
    assert finding["tensor"]
    steps = result.steps()
    assert steps["step"].max() == finding["step"]
    assert not np.isfinite(steps["loss"].iloc[-1])
    assert np.isfinite(steps["loss"].iloc[:-1]).all()
    assert train(config(optimizer=OptimizerConfig(name="sgd", lr=1e12)), tmp_path / "r", quiet=True) == result.path


def test_the_default_name_tells_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = train(config(epochs=1, optimizer=OptimizerConfig(lr=2.5)), quiet=True)
    manifest = tvlars_probe.open_run(path).manifest
    assert manifest.config_id is not None
    assert path == Path("runs") / f"digits-cnn-lars-bs32-lr2.5-none-seed0-{manifest.config_id[:6]}"


def test_config_id_is_of_what_changes_the_numbers() -> None:
    def identity(**changes: Any) -> str:
        return config(**changes).config_id(fingerprint="x", world_size=changes.get("world", 1))

    same = [
        config(place=PlaceConfig(port=77, threads=3, workers=1)),
        config(recording=RecordConfig(detail="none", every=7)),
        config(recording=RecordConfig(spectral_every=7)),
        config(optimizer=OptimizerConfig(lmbda=0.7)),  # lars has none
    ]
    ids = {c.config_id(fingerprint="x", world_size=1) for c in same}
    assert ids == {identity()}
    here, there = (identity(data=DataConfig(name="fashion-mnist", folder=folder)) for folder in (None, "/elsewhere"))
    assert here == there
    other = {identity(seed=1), identity(epochs=3), identity(batch_size=33), identity(precision="float64")}
    other |= {config().config_id(fingerprint="y", world_size=1), config().config_id(fingerprint="x", world_size=2)}
    assert len(other | ids) == 7


def test_a_configuration_survives_the_manifest(tmp_path: Path) -> None:
    chosen = config(optimizer=OptimizerConfig(name="tvlars", lr=3.0), schedule=ScheduleConfig(name="cosine"))
    result = tvlars_probe.open_run(train(chosen, tmp_path / "r", quiet=True))
    assert TrainConfig.from_dict(result.manifest.config) == chosen


@pytest.mark.parametrize("batch_size", [23, 256, 1000])
@pytest.mark.parametrize("peak", [0.1, 3.3, 8.0])
def test_the_peak_that_is_asked_for_is_reached_with_any_batch_size(peak: float, batch_size: int) -> None:
    chosen = config(schedule=ScheduleConfig(name="lars-warm", peak_lr=peak), batch_size=batch_size, epochs=5)
    schedule = chosen.schedule.build(epochs=5, steps_per_epoch=4, batch_size=batch_size)
    rates = [chosen.optimizer.peak * schedule.factor(step) for step in range(20)]
    assert max(rates) == rates[4] == pytest.approx(peak, rel=1e-15)
    # One run, and one name, with the same rate spelt out.
    spelt = dataclasses.replace(chosen, schedule=ScheduleConfig(name="lars-warm"))
    assert chosen.config_id(fingerprint="", world_size=1) == spelt.config_id(fingerprint="", world_size=1)


@pytest.mark.parametrize("schedule", ["none", "cosine"])
def test_without_lars_warm_the_peak_is_the_rate_itself(schedule: str) -> None:
    assert config(schedule=ScheduleConfig(name=schedule, peak_lr=3.0)).optimizer.lr == 3.0


def test_runs_of_one_peak_have_one_peak_on_record(tmp_path: Path) -> None:
    """To the last bit, where divided and multiplied again it would round."""
    peak, batch = 3.3, 23
    assert peak / (batch / 256) * (batch / 256) != peak
    made = {
        name: run(tmp_path / name, schedule=ScheduleConfig(name=name, peak_lr=peak), batch_size=batch, epochs=2)
        for name in ("none", "lars-warm")
    }
    for one in made.values():
        assert one.manifest.peak_lr == one.manifest.phases[0]["peak_lr"] == peak
        assert one.steps()["lr"].max() == pytest.approx(peak, rel=1e-6)
        assert TrainConfig.from_dict(one.manifest.config).schedule.peak_lr == peak
    # A rate that is no longer the peak's is refused, as after an edit of the manifest.
    edited = made["lars-warm"].manifest.config
    edited["optimizer"]["lr"] = 1.0
    with pytest.raises(UserError, match=r"--lr 1 and --peak-lr 3.3 can't both be: .* that peak is --lr 36.7"):
        TrainConfig.from_dict(edited)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spectral_every": 0}, r"--spectral-every 0 isn't possible \(allowed: 1 or more, a multiple"),
        ({"spectral_every": 15, "every": 10}, "a multiple of --record-every 10"),
        ({"spectral_every": 5, "detail": "none"}, "--spectral-every needs the layers, which --record none leaves out"),
    ],
)
def test_spectral_norms_are_measured_where_layers_are_recorded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RecordConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 101}, "--batch-size 101 is larger than the training data: digits has 100 samples"),
        ({"batch_size": 0}, "--batch-size 0 is too few"),
        ({"epochs": 0}, "--epochs 0 is too few"),
        ({"micro_batch": 0}, "--micro-batch 0 is too few"),
        ({"seed": -1}, "--seed -1"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"schedule": ScheduleConfig(name="lars-warm", warmup_epochs=2)}, "--warmup-epochs 2 leaves no epoch after"),
        ({"schedule": ScheduleConfig(name="lars-warm", warmup_epochs=1.99)}, "leaves no step after the warm-up"),
        ({"model": ModelConfig(name="resnet18"), "batch_size": 33}, "smallest piece on a rank is 1 of 100 samples"),
        ({"place": PlaceConfig(devices=("0",))}, "--devices 0: this machine has"),
        ({"place": PlaceConfig(devices=("gpu",))}, "--devices gpu: give 'cpu'"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_trained_leaves_no_run(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "r", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match="already holds something that is not a run"):
        run(tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_a_probe_that_raises_stops_recording_or_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    measure = SharpnessProbe.measure

    def fail(self: SharpnessProbe, step: int, *rest: Any) -> Any:
        if step == 4:
            raise ArithmeticError("no such luck")
        return measure(self, step, *rest)

    monkeypatch.setattr(SharpnessProbe, "measure", fail)
    settings: dict[str, Any] = {
        "sharpness": SharpnessConfig(every="2", operators=("hessian",), samples=16, tol=0.1),
        "recording": RecordConfig(on_probe_error=policy),
    }
    message = "SharpnessProbe failed at step 4: ArithmeticError: no such luck"
    if policy == "raise":
        with pytest.raises(ProbeError, match=message):
            run(tmp_path / "r", **settings)
        assert tvlars_probe.open_run(tmp_path / "r").status == "failed"
        return
    with pytest.warns(RuntimeWarning, match=message):
        result = run(tmp_path / "r", **settings)
    assert result.status == "completed"
    assert len(result.steps()) == 8
    assert result.curvature()["step"].tolist() == [0, 2]
    assert message in result.manifest.notes[0]
