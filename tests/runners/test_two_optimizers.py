"""Runs of Muon, whose other parameters another optimizer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.runners.checkpoints.test_contents import changed
from tests.runners.checkpoints.test_resuming import interrupt
from tests.runners.resumed import assert_same_run
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.posthoc.restored_state import restore_state
from tvlars_probe.runners.train import resume, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")

MUONS = {"4.weight", "6.weight"}
"""The weights between the first and the last layer."""


def config(**changes: Any) -> TrainConfig:
    """Four steps an epoch, two epochs."""
    settings: dict[str, Any] = {
        "data": DataConfig(limit=100),
        "model": ModelConfig(name="mlp"),
        "optimizer": OptimizerConfig(name="muon"),
        "schedule": ScheduleConfig(name="cosine"),
        "place": PlaceConfig(devices=("cpu",), threads=1),
        "recording": RecordConfig(checkpoint_every=0),
        "batch_size": 32,
        "epochs": 2,
        **changes,
    }
    return TrainConfig(**settings)


def test_each_parameter_has_one_row_a_step_and_its_own_rate(tmp_path: Path) -> None:
    chosen = OptimizerConfig(name="muon", lr=0.04, muon_rest_lr=0.002)
    result = tvlars_probe.open_run(train(config(optimizer=chosen), tmp_path / "r", quiet=True))
    rows = result.layers()
    assert rows.groupby("step").parameter.agg(["size", "nunique"]).to_numpy().tolist() == [[8, 8]] * 8
    first = rows[rows.step == 0].set_index("parameter").lr.to_dict()
    assert first == pytest.approx({name: 0.04 if name in MUONS else 0.002 for name in first})
    # An orthogonalised matrix has the norm √rank, here at most √128 and at first √32, the batch; the iteration leaves
    # singular values of up to 1.2. The decay adds 1e-5 of the weights.
    moved = rows[rows.parameter.isin(MUONS)]
    size = moved.update_norm / moved.lr
    assert (size < 1.21 * 128**0.5).all()
    assert size[moved.step == 0].between(0.68 * 16**0.5, 1.21 * 32**0.5).all()
    assert [g["optimizer"] for g in result.manifest.groups] == ["Muon", "AdamW"]
    assert result.manifest.peak_lr == 0.04
    assert result.steps().lr.iloc[0] == pytest.approx(0.04)


@pytest.mark.parametrize("rest", ["adamw", "sgd"])
def test_a_run_that_is_interrupted_goes_on_to_the_same_bits(tmp_path: Path, rest: str) -> None:
    settings = config(optimizer=OptimizerConfig(name="muon", muon_rest=rest))
    train(settings, tmp_path / "whole", quiet=True)
    assert interrupt(settings, tmp_path / "cut", update=5) == 6
    resume(tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_that_lacks_the_state_of_one_is_refused(tmp_path: Path) -> None:
    settings = config()
    interrupt(settings, tmp_path / "r", update=5)
    path = next(reversed(checkpoints.list_checkpoints(tmp_path / "r").values()))
    state = torch.load(path, weights_only=True)
    # The first two of the state are Muon's, and the others AdamW's.
    assert [*state["optimizer"]["state"][0]] == ["momentum_buffer"]
    assert {"exp_avg", "exp_avg_sq"} <= {*state["optimizer"]["state"][2]}
    for number in (1, 2):
        torch.save(changed(state, ("optimizer", "state", number), {}), path)
        with pytest.raises(RunDirectoryError, match="keeps other things of some parameters than of others"):
            resume(tmp_path / "r", quiet=True)


def test_the_hash_is_of_what_both_do() -> None:
    def hashed(**settings: Any) -> str:
        return config(optimizer=OptimizerConfig(name="muon", **settings)).config_id(fingerprint="x", world_size=1)

    assert hashed() == hashed(muon_rest="adamw", muon_rest_lr=0.001, lr=0.02, momentum=0.5, eta=3.0)
    others = [hashed(), hashed(muon_rest="sgd"), hashed(muon_rest="sgd", momentum=0.5), hashed(muon_rest_lr=0.3)]
    assert len({*others, hashed(lr=0.3), hashed(weight_decay=0.1)}) == 6


def test_the_effective_sharpness_is_left_out_and_a_note_says_so(tmp_path: Path) -> None:
    asked = SharpnessConfig(every="2", samples=16, tol=0.1)
    twins = {"mode": "bt", "barlow": BarlowTwinsConfig(epochs=1, projector="8-8-8", probe_batch_size=32), "epochs": 1}
    run = tvlars_probe.open_run(train(config(sharpness=asked, **twins), tmp_path / "r", quiet=True))
    operators = run.curvature().groupby("phase", observed=True).operator.agg(lambda some: {*some})
    # The linear probe after the pretraining is SGD's, whose rates are known.
    assert operators.to_dict() == {
        "pretrain": {"hessian", "relative", "adaptive"},
        "linear": {"hessian", "relative", "adaptive", "effective"},
    }
    (note,) = run.manifest.notes
    assert note == (
        "the effective sharpness isn't measured in the phase pretrain: an update by Muon isn't a rate times the "
        "gradient"
    )


def test_muons_matrices_have_no_rates_and_the_rest_have(tmp_path: Path) -> None:
    settings = config()
    train(settings, tmp_path / "r", quiet=True)
    path = next(reversed(checkpoints.list_checkpoints(tmp_path / "r").values()))
    cpu, dtype = torch.device("cpu"), torch.float32
    state = restore_state(settings, settings.data.load(1), path, device=cpu, dtype=dtype)
    rates = tvlars_probe.applied_rates(state.model, state.optimizer, scaled_lr=state.scaled_lr)
    assert {name for name, rate in rates.rates.items() if rate.isnan().any()} == MUONS
    assert rates.limit is None


def test_what_muon_cannot_do_is_refused_and_leaves_no_run(tmp_path: Path) -> None:
    told: list[Any] = []
    with pytest.raises(UserError, match="this model has none"):
        train(config(model=ModelConfig(name="cnn")), tmp_path / "r", quiet=True, announce=told.append)
    assert list(tmp_path.iterdir()) == told == []
    with pytest.raises(UserError, match="--sharpness-operators effective can't be measured with --opt muon"):
        config(sharpness=SharpnessConfig(every="2", operators=("effective",)))
