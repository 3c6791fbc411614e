"""Curvature of checkpoints, on one rank and on two."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.ranked import cli_on_ranks
from tvlars_probe import applied_rates
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.phases.probe_sample import ProbeSample
from tvlars_probe.runners.posthoc.restored_state import load_config, restore_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRAIN = ("train", "--devices", "cpu", "--bs", 300, "--epochs", 2, "--limit", 600, "--checkpoint-every", 1)


@pytest.mark.slow
def test_two_ranks_measure_as_one_uneven_shards_included(tmp_path: Path) -> None:
    """BatchNorm with the statistics of all ranks; resnet18 on small images."""
    cli_on_ranks(1, *TRAIN, "--model", "resnet18", "--limit", 64, "--bs", 32, "--run-dir", "a", cwd=tmp_path)
    figures = []
    for nproc in (1, 2):
        # The same products, to rounding, end at the same figure, converged or not.
        told = cli_on_ranks(
            nproc, "sharpness", "a", "--samples", 5, "--bn", "train", "--devices", "cpu", "--max-matvecs", 5,
            "--json", "--precision", "float64", cwd=tmp_path,
        )  # fmt: skip
        figures.append(json.loads(told)[0]["value"])
    assert figures[1] == pytest.approx(figures[0], rel=1e-8)


def test_two_ranks_probe_as_one_in_training(tmp_path: Path) -> None:
    for nproc in (1, 2):
        cli_on_ranks(nproc, *TRAIN, "--sharpness-every", 2, "--sharpness-samples", 41, "--probe-budget", "100%",
                     "--bs", 20, "--limit", 80,
                     "--sharpness-measures", "eigenvalue", "batch", "directional", "critical",
                     "--lr", 1, "--run-dir", nproc, cwd=tmp_path)  # fmt: skip
    one, two = (tvlars_probe.open_run(tmp_path / name).curvature() for name in ("1", "2"))
    assert one.step.tolist() == two.step.tolist()
    assert {*one.step} == {0, 2, 4, 6}
    assert one.measure.tolist() == two.measure.tolist()
    np.testing.assert_allclose(one.value, two.value, rtol=1e-4)  # each to its own tolerance of 1e-3
    assert one.sample_id.tolist() == two.sample_id.tolist()


def test_the_coming_update_of_a_checkpoint_is_the_one_that_training_made(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Of batches that are the whole sample, without augmentation: along it both measure the same."""
    whole = ("train", "--devices", "cpu", "--bs", 150, "--limit", 150, "--augmentation", "none", "--lr", 2)
    asked = ("--sharpness-every", 2, "--sharpness-measures", "batch", "directional", "critical")
    done = cli(*whole, *asked, "--sharpness-samples", 150, "--epochs", 3, "--run-dir", "a")
    assert done.code == 0, done.err
    assert cli(*whole, "--epochs", 2, "--run-dir", "b").code == 0
    done = cli("sharpness", "b", "--top", 0, "--batch-sharpness", "--directional-sharpness", "--critical-sharpness")
    assert done.code == 0, done.err
    assert "batch_sharpness, batches of 150" in done.out
    rows = tvlars_probe.open_runs([tmp_path / "a", tmp_path / "b"]).curvature()
    rows = rows[rows.step == 2].astype({"measure": str})
    assert rows.measure.value_counts().tolist() == [2, 2, 2]
    for _, both in rows.groupby("measure"):
        assert both.value.iloc[0] == pytest.approx(both.value.iloc[1], rel=1e-3)
    # One mini-batch has no standard error.
    assert rows[rows.measure == "batch_sharpness"].error.isna().all()


def test_the_effective_sharpness_of_a_checkpoint_is_that_of_training(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """A checkpoint holds the rates: post hoc equals what the probe of a longer run measured at its step."""
    small = (*TRAIN, "--limit", 150, "--bs", 75)
    assert cli(*small, "--sharpness-every", 2, "--sharpness-samples", 150, "--sharpness-tol", 1e-6,
               "--run-dir", "a").code == 0  # fmt: skip
    assert cli(*small, "--epochs", 1, "--run-dir", "b").code == 0
    assert cli("sharpness", "b", "--operator", "effective", "--bn", "train", "--tol", 1e-6).code == 0
    rows = tvlars_probe.open_runs([tmp_path / "a", tmp_path / "b"]).curvature()
    rows = rows[(rows.step == 2) & (rows.operator == "effective")]
    assert len(rows) == 2
    assert rows.value.iloc[0] == pytest.approx(rows.value.iloc[1], rel=1e-5)
    assert rows.limit.tolist() == pytest.approx([3.8, 3.8])
    assert rows.rate_step.tolist() == [1, 1]


def test_a_checkpoint_is_restored_as_it_was(tmp_path: Path, cli: Callable[..., Any]) -> None:
    assert cli(*TRAIN, "--run-dir", "a").code == 0
    path = [*checkpoints.list_checkpoints(tmp_path / "a").values()][-1]
    config = load_config(tmp_path / "a")
    data = config.data.load()
    state = restore_state(config, data, path, device=torch.device("cpu"), dtype=torch.float32)
    stored = checkpoints.load(path)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in state.model.state_dict().items())
    assert state.step == 4
    assert set(state.scaled_lr) == set(dict(state.model.named_parameters()))


MODULE = """
import torch
from torch import nn

def build(config):
    torch.manual_seed(config["seed"])
    return nn.Linear(4, 3), nn.functional.cross_entropy, (torch.randn(12, 4), torch.arange(12) % 3)
"""


def test_a_strangers_run_names_its_model(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    with tvlars_probe.record(model, optimizer, tmp_path / "mine", config={"seed": 5}) as rec:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        rec.log(loss=loss)
    missing = cli("sharpness", "mine")
    assert missing.code == 2
    assert "--model package.module:function" in missing.err
    assert "tvlars_probe.sharpness(" in missing.err
    (tmp_path / "strange_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    found = cli("sharpness", "mine", "--model", "strange_module:build", "--json", "--tol", 1e-6)
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["value"] == pytest.approx(
        tvlars_probe.sharpness(model, F.cross_entropy, (x, y), tol=1e-6).top, rel=1e-5
    )


WEIGHTED = """
import torch
from torch import nn

def build(config, *weights):
    torch.manual_seed(0)
    counts = torch.tensor([1.0, 5.0, 20.0])
    data = torch.randn(600, 4), torch.arange(600) % 3
    return nn.Linear(4, 3), nn.CrossEntropyLoss(weight=counts), data, *weights

def by_weights(config):
    return build(config, lambda batch: torch.tensor([1.0, 5.0, 20.0])[batch[1]].sum())

def by_a_number(config):
    return build(config, 1.0)
"""


def test_a_strangers_function_may_say_what_a_batch_counts(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 600 samples are measured in pieces, the loss of which is a mean by class weights."""
    (tmp_path / "weighted_module.py").write_text(WEIGHTED)
    monkeypatch.syspath_prepend(tmp_path)
    with tvlars_probe.record(torch.nn.Linear(4, 3), torch.optim.SGD([torch.ones(1)], 0.1), tmp_path / "mine"):
        pass
    import weighted_module

    model, loss, data = weighted_module.build({})
    exact = tvlars_probe.sharpness(model, loss, data, tol=1e-6).top
    for further in ((), ("--precision", "float64")):
        found = cli("sharpness", "mine", "--model", "weighted_module:by_weights", "--json", "--tol", 1e-4, *further)
        assert found.code == 0, found.err
        assert json.loads(found.out)[0]["value"] == pytest.approx(exact, rel=1e-3)
    refused = cli("sharpness", "mine", "--model", "weighted_module:build")
    assert refused.code == 2
    assert "isn't the mean over its samples" in refused.err
    assert "a fourth value" in refused.err
    assert "with what a batch counts" in cli("sharpness", "mine", "--model", "weighted_module:by_a_number").err


def test_the_sample_is_the_same_for_every_seed_of_training(tmp_path: Path, cli: Callable[..., Any]) -> None:
    ids = set()
    for seed in (0, 1):
        assert cli(*TRAIN, "--seed", seed, "--run-dir", f"r{seed}").code == 0
        assert cli("sharpness", f"r{seed}", "--samples", 100).code == 0
        ids |= set(tvlars_probe.open_run(tmp_path / f"r{seed}").curvature().sample_id)
    assert len(ids) == 1
    assert len(DataConfig(name="digits").load().train) == 1437


def test_weights_of_a_float64_run_are_restored_to_the_bit(trained: Callable[..., Path]) -> None:
    run = trained("lars", precision="float64")
    config, (path, *_) = load_config(run), checkpoints.list_checkpoints(run).values()
    state = restore_state(config, config.data.load(), path, device=torch.device("cpu"), dtype=torch.float64)
    stored = checkpoints.load(path)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in state.model.state_dict().items())


def test_a_run_is_measured_in_the_type_of_its_weights_unless_another_is_asked_for(
    trained: Callable[..., Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    shutil.copytree(trained("lars", precision="float64"), tmp_path / "wide")
    shutil.copytree(trained("lars"), tmp_path / "narrow")
    words = ("--samples", 64, "--density", "--density-probes", 1, "--density-steps", 4, "--tol", 0.1, "--dv", "cpu")
    told = {}
    for run, *asked in (("wide",), ("narrow",), ("wide", "--precision", "float32")):
        outcome = cli("sharpness", run, *words, *asked, "--json")
        assert outcome.code == 0, outcome.err
        rows = json.loads(outcome.out)
        (told[run, *asked],) = {(row["precision"], row["loss"]) for row in rows}
    path = [*checkpoints.list_checkpoints(tmp_path / "wide").values()][-1]
    config = load_config(tmp_path / "wide")
    data = config.data.load()
    state = restore_state(config, data, path, device=torch.device("cpu"), dtype=torch.float64)
    sample = ProbeSample.draw(data.train, 64)
    x, y = data.train.batch(torch.tensor(sample.indices), torch.float64)
    loss = F.cross_entropy(state.model.eval()(x), y).item()
    assert told["wide",] == ("float64", pytest.approx(loss, rel=1e-12))
    assert told["narrow",][0] == told["wide", "--precision", "float32"][0] == "float32"


def test_a_strangers_model_in_double_precision_is_not_rounded(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tvlars_probe.record(model, optimizer, tmp_path / "mine", config={"seed": 5}) as rec:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        rec.log()
    (tmp_path / "wide_module.py").write_text(MODULE.replace("nn.Linear(4, 3)", "nn.Linear(4, 3).double()"))
    monkeypatch.syspath_prepend(tmp_path)
    outcome = cli("sharpness", "mine", "--model", "wide_module:build", "--json")
    assert outcome.code == 0, outcome.err
    (row,) = json.loads(outcome.out)
    torch.manual_seed(5)
    same = torch.nn.Linear(4, 3).double()
    loss = F.cross_entropy(same(torch.randn(12, 4).double()), torch.arange(12) % 3).item()
    assert (row["precision"], row["loss"]) == ("float64", pytest.approx(loss, rel=1e-14))


def test_the_rates_of_a_float64_run_come_back_from_its_checkpoint_to_the_bit(trained: Callable[..., Path]) -> None:
    run = trained("lars", precision="float64")
    config, (path, *_) = load_config(run), checkpoints.list_checkpoints(run).values()
    state = restore_state(config, config.data.load(), path, device=torch.device("cpu"), dtype=torch.float64)
    stored = checkpoints.load(path)["optimizer"]["state"]
    buffers = [state.optimizer.state[p]["momentum_buffer"] for p in state.model.parameters()]
    assert all(torch.equal(b, stored[i]["momentum_buffer"]) for i, b in enumerate(buffers))
    found = applied_rates(state.model, state.optimizer, scaled_lr=state.scaled_lr).rates
    assert {name: rate.item() for name, rate in found.items()} == state.scaled_lr
