"""Branches of a run: what is kept, what follows the batch, and how they are continued."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.runners.checkpoints.test_resuming import signalling
from tests.runners.resumed import assert_same_run, use_small_model
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import InterruptedRunError, RunDirectoryError, UserError
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.phi import phi
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.checking import check_run
from tvlars_probe.runners.configuration.noise import NoiseConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.sweeps.branches import BranchPlan, branch_trials, evaluations
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
from tvlars_probe.runners.sweeps.sweep import sweep
from tvlars_probe.runners.sweeps.trials import carry_out
from tvlars_probe.runners.train import train

if TYPE_CHECKING:
    from tvlars_probe.runners.sweeps.trials import Trial

SAMPLES, BATCH, STEP = 96, 32, 4
"""Three batches an epoch, and a checkpoint after the first batch of the second."""


def config(optimizer: str = "tvlars", **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": DataConfig(limit=SAMPLES),
        "optimizer": OptimizerConfig(name=optimizer, lr={"tvlars": 4.0, "sgd": 0.1}.get(optimizer), lmbda=0.2),
        "schedule": ScheduleConfig(name="cosine"),
        "place": PlaceConfig(devices=("cpu",), threads=1),
        "recording": RecordConfig(checkpoint_steps=STEP, keep_checkpoints=0, train_eval_samples=0),
        "batch_size": BATCH,
        "epochs": 4,
        **changes,
    }
    return TrainConfig(**settings)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_model(monkeypatch)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return train(config(), tmp_path / "p", quiet=True)


def plan(run: Path, **changes: Any) -> BranchPlan:
    settings = {"run": run, "checkpoint": str(STEP), "batch_sizes": (BATCH,), "samples": 6 * BATCH, **changes}
    return BranchPlan(**settings)


def made(trial: Trial) -> Path:
    outcome = carry_out(trial.config.as_dict(), trial.path, trial.command)
    assert (outcome.status, outcome.error) == ("completed", None)
    return trial.path


def last_state(run: Path) -> dict[str, Any]:
    return checkpoints.load([*checkpoints.list_checkpoints(run).values()][-1])


@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("tvlars", "cosine"), ("sgd", "lars-warm"), ("adamw", "none"), ("muon", "lars-warm")]
)
def test_with_the_parents_batch_and_order_it_is_the_parents_own_continuation(
    optimizer: str, schedule: str, tmp_path: Path
) -> None:
    """Bit for bit, dropout included: the parent's eight steps after the checkpoint."""
    model = ModelConfig(name="mlp" if optimizer == "muon" else "cnn")  # Muon is for hidden matrices
    settings = config(optimizer, schedule=ScheduleConfig(name=schedule), model=model)
    parent = train(settings, tmp_path / "p", quiet=True)
    [trial] = branch_trials(plan(parent, samples=8 * BATCH, lr_rule="linear", order="parent"))
    whole, branch = (tvlars_probe.open_run(path) for path in (parent, made(trial)))
    columns = ["loss", "lr", "phi", "grad_norm", "weight_norm"]
    assert whole.steps(columns)[STEP:].reset_index(drop=True).equals(branch.steps(columns))
    weights = last_state(parent)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in last_state(trial.path)["model"].items())
    assert branch.epochs()["test_loss"].iloc[-1] == whole.epochs()["test_loss"].iloc[-1]


@pytest.mark.parametrize(
    ("batch_size", "rule", "factor"), [(64, "sqrt", math.sqrt(2)), (16, "linear", 0.5), (64, "none", 1)]
)
def test_rates_and_phi_follow_the_samples(batch_size: int, rule: str, factor: float, parent: Path) -> None:
    [trial] = branch_trials(plan(parent, batch_sizes=(batch_size,), lr_rule=rule))
    branch, whole = (tvlars_probe.open_run(path).steps(["step", "lr", "phi"]) for path in (made(trial), parent))
    stride = batch_size / BATCH
    for row in branch.itertuples():
        at = STEP + row.step * stride
        if at == int(at):
            assert row.lr == pytest.approx(factor * whole.lr[int(at)], rel=1e-12)
        # The update's own count is of the samples after it.
        assert row.phi == pytest.approx(phi(at + stride, lmbda=0.2), rel=1e-12)
    assert len(branch) == 6 * BATCH / batch_size


def test_weights_buffers_and_momentum_are_the_parents(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the branch's first update."""
    from tvlars_probe.runners.phases.loop import Training

    [trial] = branch_trials(plan(parent, batch_sizes=(16,)))
    there = checkpoints.load(parent / "checkpoints" / f"step-{STEP}.pt")
    seen: list[bool] = []

    def look(self: Training, *_: Any) -> Any:
        mine = self.optimizer.state_dict()["state"]
        seen.append(all(torch.equal(v, there["model"][k]) for k, v in self.model.state_dict().items()))
        seen.append(
            all(
                torch.equal(v["momentum_buffer"], mine[k]["momentum_buffer"])
                for k, v in there["optimizer"]["state"].items()
            )
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "update", look)
    with pytest.raises(InterruptedRunError):
        carry_out(trial.config.as_dict(), trial.path)
    assert seen == [True, True]


def test_it_is_a_run_of_its_own(parent: Path) -> None:
    trials = branch_trials(plan(parent, batch_sizes=(64, 16), seeds=2, samples=128))
    names = [f"p-branch-{STEP}-b16", f"p-branch-{STEP}-b16-s1", f"p-branch-{STEP}-b64", f"p-branch-{STEP}-b64-s1"]
    assert [trial.path.name for trial in trials] == names
    paths = [made(trial) for trial in trials]
    manifests = [tvlars_probe.open_run(path).manifest for path in paths]
    assert len({m.config_id for m in manifests}) == 4
    assert [m.seed for m in manifests] == [0, 1, 0, 1]
    whole = tvlars_probe.open_run(parent).manifest
    told = manifests[2].config["branch"]
    assert (told["run_id"], told["step"], told["batch_size"], told["lr_rule"]) == (whole.run_id, STEP, BATCH, "sqrt")
    assert (paths[2] / told["parent"]).resolve() == parent.resolve()
    assert manifests[2].peak_lr == pytest.approx(4.0 * math.sqrt(2) * 0.5 * (1 + math.cos(math.pi * STEP / 12)))
    assert all(check_run(path).faults == [] for path in paths)
    # Evaluated at equal numbers of samples, the smaller batch more often.
    seen = [tvlars_probe.open_run(path).steps()["samples"].max() for path in paths]
    assert seen == [128] * 4
    runs = [tvlars_probe.open_run(path) for path in paths]
    assert [len(run.epochs()) for run in runs] == [8, 8, 2, 2]
    assert all(run.epochs()["train_eval_loss"].notna().all() for run in runs)
    # Seeds draw the data in another order; batch sizes see the same samples.
    first = [run.steps()["loss"].iloc[0] for run in runs]
    assert len({*first}) == 4
    # The parent is untouched.
    assert check_run(parent).faults == []


@pytest.mark.parametrize("update", [0, 4, 11])
def test_one_that_was_cut_off_is_continued_to_the_same_bits(
    update: int, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [trial] = branch_trials(plan(parent, batch_sizes=(16,), lr_rule="linear"))
    [other] = branch_trials(plan(parent, batch_sizes=(16,), lr_rule="linear", out=parent.parent / "other"))
    with pytest.MonkeyPatch.context() as patches:
        signalling(patches, "update", update, signal.SIGTERM)
        with pytest.raises(InterruptedRunError):
            carry_out(trial.config.as_dict(), trial.path)
    assert tvlars_probe.open_run(trial.path).status == "interrupted"
    # Where it has a checkpoint of its own, the parent's is no longer needed.
    parent.rename(parent.with_name("elsewhere"))
    made(trial)
    parent.with_name("elsewhere").rename(parent)
    assert_same_run(made(other), trial.path, ("steps", "layers", "epochs"))


def test_one_that_was_killed_before_its_first_checkpoint_begins_again(parent: Path) -> None:
    from tvlars_probe.runners.phases.loop import Training

    [trial] = branch_trials(plan(parent, batch_sizes=(16,)))
    [other] = branch_trials(plan(parent, batch_sizes=(16,), out=parent.parent / "other"))
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Training, "update", lambda *_: 1 / 0)
        assert carry_out(trial.config.as_dict(), trial.path).status == "failed"
    assert_same_run(made(other), made(trial), ("steps", "layers", "epochs"))


def test_a_sweep_of_branches_skips_what_is_finished(parent: Path) -> None:
    trials = branch_trials(plan(parent, batch_sizes=(16, 32)))
    first = sweep(trials, LaunchPlan(), parent.parent, lambda *_: None)
    stamps = [(trial.path / "run.json").stat().st_mtime_ns for trial in trials]
    again = sweep(branch_trials(plan(parent, batch_sizes=(16, 32))), LaunchPlan(), parent.parent, lambda *_: None)
    assert [o.status for o in first] == [o.status for o in again] == ["completed"] * 2
    assert [(trial.path / "run.json").stat().st_mtime_ns for trial in trials] == stamps


def test_a_manifest_from_before_branches_is_read_and_keeps_its_hash() -> None:
    stored = config().as_dict()
    assert stored.pop("branch") is None
    before = TrainConfig.from_dict(stored)
    assert before == config() == TrainConfig.from_dict(config().as_dict())
    with pytest.raises(UserError, match="its branch is 3"):
        TrainConfig.from_dict({**stored, "branch": 3})


def test_the_hash_covers_where_it_comes_from(parent: Path) -> None:
    [trial] = branch_trials(plan(parent))
    ids = {trial.config.config_id(fingerprint="x", world_size=1)}
    assert trial.config.branch is not None
    for change in ({"step": 5}, {"run_id": "other"}, {"samples": 64}, {"order": "parent"}, {"epochs": 9}):
        other = dataclasses.replace(trial.config, branch=dataclasses.replace(trial.config.branch, **change))
        ids.add(other.config_id(fingerprint="x", world_size=1))
    assert len(ids) == 6
    moved = dataclasses.replace(trial.config, branch=dataclasses.replace(trial.config.branch, parent="../elsewhere"))
    assert moved.config_id(fingerprint="x", world_size=1) in ids
    assert TrainConfig.from_dict(trial.config.as_dict()) == trial.config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": "5"}, r"--checkpoint 5: there is none \(allowed: last, best, or a step of 3, 4, 6"),
        ({"checkpoint": "all"}, r"--checkpoint all: it takes one checkpoint \(allowed: last, best, or a step of 3, "),
        ({"batch_sizes": (128,), "samples": 128}, r"--batch-sizes 128 is larger than the training data: .* 96 samples"),
        ({"batch_sizes": (64,), "samples": 63}, r"--samples 63 is less than one batch of --batch-sizes 64"),
        ({"batch_sizes": ()}, r"--batch-sizes names none"),
        ({"batch_sizes": (0,)}, r"--batch-sizes 0 is too few"),
        ({"batch_sizes": (16, 16)}, r"--batch-sizes names 16 twice"),
        ({"seeds": 0}, r"--seeds 0 is too few"),
        ({"lr_rule": "cubic"}, "unknown --lr-rule 'cubic'"),
        (
            {"samples": 9 * BATCH},
            r"--samples 288 is more than the run's schedule, cosine, has left .*give 256 or fewer",
        ),
        ({"checkpoint": "last"}, r"has left after step 12: branch an earlier checkpoint"),
    ],
)
def test_what_cant_be_done_is_refused_before_anything_is_made(changes: dict[str, Any], said: str, parent: Path) -> None:
    before = {*parent.parent.iterdir()}
    with pytest.raises(UserError, match=said):
        branch_trials(plan(parent, **changes))
    assert {*parent.parent.iterdir()} == before


def test_no_branch_is_made_inside_a_run(parent: Path) -> None:
    with pytest.raises(RunDirectoryError, match=f"lies in the run directory {parent}, where no run is looked for"):
        branch_trials(plan(parent, out=parent / "branches"))


def test_runs_that_cant_be_branched_are_refused(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        branch_trials(plan(tmp_path / "nothing"))
    [trial] = branch_trials(plan(parent))
    with pytest.raises(UserError, match="is a branch itself: branch the run that it comes from"):
        branch_trials(plan(made(trial), checkpoint="last"))
    twins = train(
        config(mode="bt", barlow=BarlowTwinsConfig(epochs=1, projector="8-8"), epochs=1), tmp_path / "twins", quiet=True
    )
    with pytest.raises(UserError, match="--mode bt, whose loss joins all samples of a batch"):
        branch_trials(plan(twins, checkpoint="last"))
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "own") as rec:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        rec.log(loss=1.0, samples=1)
    with pytest.raises(UserError, match="was not made by tvlars-probe train"):
        branch_trials(plan(tmp_path / "own"))


def test_another_branch_in_its_place_is_refused(parent: Path) -> None:
    made(branch_trials(plan(parent))[0])
    with pytest.raises(RunDirectoryError, match=r"is a branch with other settings: lr_rule sqrt: give another --out"):
        branch_trials(plan(parent, lr_rule="none"))
    parent.with_name(f"p-branch-{STEP}-b32").rename(parent.with_name(f"p-branch-{STEP}-b16"))
    parent.rename(parent.with_name("old"))
    train(config(seed=1), parent, quiet=True)
    with pytest.raises(RunDirectoryError, match="is a branch of another run"):
        branch_trials(plan(parent, batch_sizes=(16,)))


def test_a_checkpoint_that_vanished_or_was_replaced_fails_the_branch(parent: Path) -> None:
    [trial] = branch_trials(plan(parent))
    file = parent / "checkpoints" / f"step-{STEP}.pt"
    file.rename(file.with_name("step-4.gone"))
    outcome = carry_out(trial.config.as_dict(), trial.path)
    assert outcome.status == "failed"
    assert f"there is no checkpoint {file}" in str(outcome.error)
    other = train(config(seed=1), parent.with_name("q"), quiet=True)
    (other / "checkpoints" / f"step-{STEP}.pt").rename(file)
    assert "it belongs to the run" in str(carry_out(trial.config.as_dict(), trial.path).error)


def test_branches_stand_beside_their_parent_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's own folder "." has no parent but itself."""
    inner = tmp_path / "run" / "trace"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for path in ("..", "../../run", "../."):
        assert plan(Path(path)).path(3, 8, 0).resolve() == tmp_path / "run-branch-3-b8"
    monkeypatch.chdir(tmp_path / "run")
    assert plan(Path()).path(3, 8, 0).resolve() == tmp_path / "run-branch-3-b8"


def test_more_ranks_than_a_batch_are_refused(tmp_path: Path) -> None:
    """The configuration alone says so: nothing is launched."""
    from tvlars_probe.runners.sweeps.branches import _check_batch

    two = config(place=PlaceConfig(devices=("cpu",), nproc=2, threads=1), batch_size=1)
    with pytest.raises(UserError, match="--batch-sizes 1 is smaller than the number of ranks, 2"):
        _check_batch(two, two.data.load(0))


def test_settings_for_the_parent_alone_are_left_out(parent: Path, tmp_path: Path) -> None:
    recording = RecordConfig(every=2, spectral_every=4, checkpoint_steps=STEP, keep_checkpoints=0, findings=("all",))
    sharp = SharpnessConfig(every="4", operators=("hessian",), samples=16, tol=0.1)
    noise = NoiseConfig(every="4", samples=16)
    run = train(config(recording=recording, sharpness=sharp, noise=noise), tmp_path / "sharp", quiet=True)
    [trial] = branch_trials(plan(run))
    kept = trial.config.recording
    assert (kept.every, kept.findings, kept.spectral_every, trial.config.sharpness.every) == (2, ("all",), None, None)
    assert trial.config.noise.every is None


@pytest.mark.parametrize(
    ("samples", "batch_size", "times"), [(2560, 64, 10), (2560, 512, 5), (2560, 100, 1), (96, 96, 1), (192, 16, 6)]
)
def test_evaluations_stand_between_whole_batches(samples: int, batch_size: int, times: int) -> None:
    assert evaluations(samples, batch_size) == times


def test_the_rate_of_a_branch_follows_its_rule_from_the_parents_peak(tmp_path: Path) -> None:
    peak = ScheduleConfig(name="lars-warm", peak_lr=2.0)
    home = train(config("lars", schedule=peak), tmp_path / "p", quiet=True)
    trials = branch_trials(plan(home, batch_sizes=(BATCH, 2 * BATCH), lr_rule="linear"))
    assert [t.config.optimizer.lr for t in trials] == [2.0 / (BATCH / 256), 2 * 2.0 / (BATCH / 256)]
    assert {t.config.schedule.peak_lr for t in trials} == {None}
