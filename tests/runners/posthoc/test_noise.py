"""The gradient's noise of checkpoints, and in training by the options of the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.ranked import cli_on_ranks
from tvlars_probe.errors import UserError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.probe_sample import ProbeSample
from tvlars_probe.runners.posthoc.noise import NoiseJob, measure_noise
from tvlars_probe.runners.posthoc.restored_state import load_config, restore_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRAIN = ("train", "--devices", "cpu", "--bs", 300, "--epochs", 2, "--limit", 600, "--checkpoint-every", 1, "--lr", 1)


def test_a_checkpoint_has_the_noise_of_its_model_and_the_trace_stays_as_it_was(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = tmp_path / "a"
    assert cli(*TRAIN, "--keep-checkpoints", 0, "--run-dir", "a").code == 0
    before = {path: path.read_bytes() for path in (run / "trace").rglob("*") if path.is_file()}
    name = measure_noise(NoiseJob(run=run, checkpoint="all", samples=60, eigenvectors=1))
    rows = tvlars_probe.open_run(run).noise()
    assert (rows.measurement_id == name).all()
    whole = rows[rows.scope_kind == "all"].set_index("step")
    assert whole.index.tolist() == [2, 4]
    config = load_config(run)
    data = config.data.load()
    path = checkpoints.list_checkpoints(run)[2]
    state = restore_state(config, data, path, device=torch.device("cpu"), dtype=torch.float32)
    sample = ProbeSample.draw(data.train, 60)
    pair = data.train.batch(torch.tensor(sample.indices), torch.float32)
    found = tvlars_probe.gradient_noise(state.model, F.cross_entropy, pair, eigenvectors=1).whole
    assert whole.noise_trace[2] == pytest.approx(found.noise_trace, rel=1e-5)
    assert whole.gradient_square_error[2] == pytest.approx(found.gradient_square_error, rel=1e-4)
    assert whole.top_share[2] == pytest.approx(found.top_share, rel=0.02)
    assert (rows.sample_id == sample.sample_id).all()
    assert (rows.split == "train").all()
    assert before == {path: path.read_bytes() for path in (run / "trace").rglob("*") if path.is_file()}
    assert [path.parent.name for path in run.rglob("noise/part-*")] == ["noise"] * 2


def test_two_ranks_probe_as_one_in_training(tmp_path: Path) -> None:
    for nproc in (1, 2):
        cli_on_ranks(nproc, *TRAIN, "--noise-every", 2, "--noise-samples", 66, "--run-dir", nproc, cwd=tmp_path)
    one, two = (tvlars_probe.open_run(tmp_path / name).noise() for name in ("1", "2"))
    assert one[one.scope_kind == "all"].step.tolist() == [0, 2]
    for column in ("gradient_square", "gradient_square_error", "noise_trace", "noise_trace_error"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-3, atol=1e-5)
    assert one.sample_id.tolist() == two.sample_id.tolist()


def test_a_measured_run_is_that_of_the_same_settings_without(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Noise changes no number, so no config_id; a manifest of before it, which doesn't have it, is read."""
    assert cli(*TRAIN, "--run-dir", "a").code == 0
    assert cli(*TRAIN, "--run-dir", "b", "--noise-every", "log", "--noise-samples", 40, "--noise-piece", 10).code == 0
    stored = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("a", "b")]
    assert stored[0]["config_id"] == stored[1]["config_id"]
    assert stored[1]["config"]["noise"] == {"every": "log", "samples": 40, "bn_mode": "frozen-batch", "piece": 10}
    older = {name: value for name, value in stored[0]["config"].items() if name != "noise"}
    assert TrainConfig.from_dict(older).noise.every is None
    rows = tvlars_probe.open_run(tmp_path / "b").noise()
    assert rows[rows.scope_kind == "all"].step.tolist() == [0, 1, 2, 3]
    assert (rows.pieces == 4).all()
    weights = [checkpoints.load(tmp_path / name / "checkpoints" / "step-4.pt")["model"] for name in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_barlow_twins_has_noise_between_pieces(tmp_path: Path, cli: Callable[..., Any]) -> None:
    bt = (*TRAIN, "--mode", "bt", "--cl-epochs", 1, "--epochs", 1, "--projector", "8-8", "--model", "mlp",
          "--noise-every", 2, "--noise-samples", 60)  # fmt: skip
    told = cli(*bt, "--run-dir", "a")
    assert told.code == 2
    assert "--noise-every needs --noise-piece with --mode bt" in told.err
    assert cli(*bt, "--run-dir", "a", "--noise-piece", 20).code == 0
    rows = tvlars_probe.open_run(tmp_path / "a").noise()
    assert set(rows.phase) == {"pretrain", "probe"} or rows.phase.nunique() == 2
    assert (rows.pieces == 3).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--noise-every", "0"), "--noise-every 0: give a number of steps, 1 or more, or 'log'"),
        (("--noise-every", 2, "--noise-samples", 1), "--noise-samples 1 is too few (allowed: 2 or more"),
        (("--noise-every", 2, "--noise-piece", 0), "--noise-piece 0 is too few (allowed: 1 or more)"),
        (("--noise-every", 2, "--model", "resnet18", "--noise-bn", "train"), "compare pieces of a size"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: tuple[Any, ...], said: str, cli: Callable[..., Any]) -> None:
    told = cli(*TRAIN, "--run-dir", "a", *options)
    assert told.code == 2
    assert said in told.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 1}, r"--samples 1 is too few \(allowed: 2 or more"),
        ({"piece": 0}, "--piece 0 is too few"),
        ({"bn_mode": "none"}, "eval, train, frozen-batch"),
        ({"precision": "half"}, "float32, float64"),
        ({"eigenvectors": -1}, "--eigenvectors -1 is too few"),
    ],
)
def test_a_job_that_cannot_be_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        NoiseJob(run=tmp_path, **options)
