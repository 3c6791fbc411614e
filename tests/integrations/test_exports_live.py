"""Live exports with the real trackers: each one's own reader finds the trace's values; the training is the same."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.exports.test_live import assert_same, train
from tests.integrations.tracker_readers import READERS
from tests.integrations.trainers import TRAINERS, Job
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tvlars_probe.exports import live

if TYPE_CHECKING:
    from pathlib import Path

TRACKERS = [*READERS]


@pytest.fixture(autouse=True)
def quiet_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio has one folder for all runs; the others write into the run. Patience, for the machine may be busy."""
    import trackio.sqlite_storage
    import trackio.utils

    folder = tmp_path_factory.mktemp("trackio")
    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", folder)
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", folder)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live, "END_SECONDS", 120.0)


def expected(run: Any) -> dict[tuple[int, str], float]:
    """What the trace holds, under the names of docs/guides/trackers.md, spelt out here once more."""
    values: dict[tuple[int, str], float] = {}
    for row in run.steps().itertuples():
        values |= {
            (row.step, "loss/train"): row.loss,
            (row.step, "lr/group0"): row.lr,
            (row.step, "l2_norm/grad/global"): row.grad_norm,
            (row.step, "l2_norm/param/global"): row.weight_norm,
            (row.step, "time/sample"): row.samples,
        }
    layers = run.layers()
    for row in layers[layers.step == layers.step.max()].itertuples():
        values |= {
            (row.step, f"trust_ratio/{row.parameter}"): row.trust_ratio,
            (row.step, f"l2_norm/grad/{row.parameter}"): row.grad_norm,
            (row.step, f"l2_norm/param/{row.parameter}"): row.weight_norm,
        }
    for row in run.epochs().itertuples():
        values[row.step, "metrics/test/acc1"] = row.test_acc1
    return values


def same(tracker: str, found: float, traces: float) -> bool:
    if tracker == "tensorboard":  # it holds float32
        traces = float(np.float32(traces))
    return found == traces or (math.isnan(found) and math.isnan(traces))


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_trackers_own_reader_finds_the_traces_values(tracker: str, tmp_path: Path) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    without, _ = train(tmp_path / "without", ())
    random.setstate(state[0])
    found_weights, rec = train(tmp_path / "r", [tracker], config={"model": {"width": 4}, "note": "it's"})
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert all(torch.equal(a, b) for a, b in zip(found_weights, without, strict=True))
    assert_same(tmp_path / "r", tmp_path / "without")

    run = tvlars_probe.open_run(rec.path)
    assert run.manifest.notes == []
    found = READERS[tracker](rec.path / "exports", rec.manifest.run_id)
    for key, value in expected(run).items():
        assert same(tracker, found.scalars[key], value), key
    if found.times:
        assert found.times[7, "loss/train"] == pytest.approx(run.steps().time[7].timestamp(), abs=1.1e-3)
    if tracker in ("trackio", "mlflow"):
        assert str(found.config["model.width"]) == "4"
    if tracker == "wandb":
        assert found.config["model"] == {"width": 4}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_loss_that_is_not_finite_arrives(tracker: str, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[tracker]) as rec:
        for step, loss in enumerate((1.0, math.inf, math.nan)):
            optimizer.step()
            rec.log(loss=loss, samples=4)
            if not step:
                loop(model, optimizer, range(1))
    found = READERS[tracker](rec.path / "exports", rec.manifest.run_id).scalars
    losses = [value for (_, name), value in sorted(found.items()) if name == "loss/train"]
    assert losses[0] == 1
    # MLflow's database has no infinity: it keeps the largest float.
    assert losses[1] in (math.inf, 1.7976931348623157e308)
    assert math.isnan(losses[2])


@pytest.mark.parametrize("tracker", TRACKERS)
def test_findings_arrive(tracker: str, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[tracker]) as rec:
        loop(model, optimizer, range(4), rec)
        assert rec.journal is not None
        finding = {"step": [2], "rule": ["loss_spike"], "value": [9.0], "threshold": [3.0], "text": ["the loss rose"]}
        rec.journal.append("findings", finding)
    texts = READERS[tracker](rec.path / "exports", rec.manifest.run_id).texts
    assert any("the loss rose" in text for text in texts)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(tracker: str, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[tracker]) as rec:
        loop(model, optimizer, range(10), rec)
        state = rec.state_dict()
        loop(model, optimizer, range(10, 14), rec)
        rec.interrupted = True
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[tracker], resume=state) as rec:
        loop(model, optimizer, range(20, 22), rec)
    found = READERS[tracker](rec.path / "exports", rec.manifest.run_id).scalars
    there = {step: value for (step, name), value in found.items() if name == "loss/train"}
    trace = tvlars_probe.open_run(rec.path).steps().set_index("step").loss
    # What was cut back goes from TensorBoard; elsewhere it stays, but the later value of a step is the one shown.
    assert there.keys() - {12, 13} == {*trace.index}
    assert ({12, 13} <= there.keys()) is (tracker != "tensorboard")
    assert all(same(tracker, there[step], trace[step]) for step in trace.index)


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_a_trainers_callback_takes_exports_too(trainer: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    TRAINERS[trainer](Job(path=path, folder=tmp_path, options={"export": ["tensorboard"]}))
    run = tvlars_probe.open_run(path)
    found = READERS["tensorboard"](path / "exports", run.manifest.run_id).scalars
    steps = run.steps().set_index("step")
    assert len(steps)
    assert all(same("tensorboard", found[step, "loss/train"], steps.loss[step]) for step in steps.index)
    layers = run.layers()
    for row in layers[layers.step == layers.step.max()].itertuples():
        assert same("tensorboard", found[row.step, f"l2_norm/grad/{row.parameter}"], row.grad_norm)
