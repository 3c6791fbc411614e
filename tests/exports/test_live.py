"""Exports while a run trains: a tracker that raises, hangs or is slow changes nothing but what it gets itself."""

from __future__ import annotations

import os
import random
import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

import tvlars_probe
from tests.exports.fakes import Hanging, Kept, Raising
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tvlars_probe.errors import UserError
from tvlars_probe.exports import live

if TYPE_CHECKING:
    from pathlib import Path

TIMES = ["time", "step_seconds", "probe_seconds", "run"]


def train(folder: Path, export: Any, *, flushes: int = 3, **settings: Any) -> tuple[list[torch.Tensor], Any]:
    """Train a little; the weights, and the recorder."""
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, folder, export=export, **settings) as rec:
        for flush in range(flushes):
            loop(model, optimizer, range(10 * flush, 10 * flush + 10), rec)
            rec.log_epoch(epoch=flush, test_acc1=50.0 + flush)
            rec.flush()
    return [p.detach().clone() for p in model.parameters()], rec


def assert_same(a: Path, b: Path) -> None:
    one, two = tvlars_probe.open_run(a), tvlars_probe.open_run(b)
    assert one.status == two.status == "completed"
    for table in ("steps", "layers", "epochs"):
        frames = [run.frame(table).drop(columns=TIMES, errors="ignore") for run in (one, two)]
        for frame in frames:
            if "parameter" in frame:
                frame["parameter"] = frame["parameter"].astype(str)
        pd.testing.assert_frame_equal(*frames)


def test_values_sent_are_the_traces(tmp_path: Path) -> None:
    kept = Kept()
    _, rec = train(tmp_path / "r", [kept])
    run = tvlars_probe.open_run(rec.path)
    steps, layers = run.steps().set_index("step"), run.layers().set_index(["step", "parameter"])
    assert kept.ended == ["completed"]
    assert kept.flushes >= 3
    for step in range(30):
        assert kept.values[step, "loss/train"] == steps.loss[step]
        assert kept.values[step, "l2_norm/grad/global"] == steps.grad_norm[step]
        assert kept.values[step, "time/sample"] == steps.samples[step]
    for name in layers.index.get_level_values("parameter").unique():
        assert kept.values[29, f"l2_norm/grad/{name}"] == layers.grad_norm[29, name]
        assert kept.values[29, f"trust_ratio/{name}"] == layers.trust_ratio[29, name]
    assert [kept.values[step, "metrics/test/acc1"] for step in (10, 20, 30)] == [50, 51, 52]
    assert kept.points[0].time == steps.time[0].timestamp()
    about = kept.runs[0]
    assert (about.run_id, about.name, about.first_step) == (rec.manifest.run_id, "r", 0)


@pytest.mark.parametrize("where", ["begin", "scalars", "end"])
def test_a_tracker_that_raises_is_switched_off(where: str, tmp_path: Path) -> None:
    without, _ = train(tmp_path / "without", ())
    with pytest.warns(
        RuntimeWarning, match="the export to Raising failed: ConnectionError: the tracker is away"
    ) as told:
        found, rec = train(tmp_path / "with", [Raising(where)])
    assert len(told) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))
    assert_same(tmp_path / "with", tmp_path / "without")
    (note,) = tvlars_probe.open_run(rec.path).manifest.notes
    assert note.endswith("the run goes on without it; it is in the trace")


def test_a_store_that_cannot_be_made_is_told_before_the_training(tmp_path: Path) -> None:
    class Preparing(Kept):
        def prepare(self, run: Any) -> None:
            raise PermissionError("the disk is read-only")

    kept = Preparing()
    with pytest.warns(RuntimeWarning, match="the export to Preparing failed: PermissionError: the disk is read-only"):
        _, rec = train(tmp_path / "r", [kept])
    assert not kept.runs
    assert len(tvlars_probe.open_run(rec.path).manifest.notes) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_not_even_an_exit_reaches_the_loop(error: BaseException, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=type(error).__name__):
        _, rec = train(tmp_path / "r", [Raising(error=error)])
    assert tvlars_probe.open_run(rec.path).status == "completed"


def test_a_warning_that_is_an_error_stays_in_the_trackers_thread(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, rec = train(tmp_path / "r", [Raising()])
    assert rec.manifest.status == "completed"


def test_a_tracker_that_hangs_holds_up_neither_the_loop_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "END_SECONDS", 0.01)
    without, _ = train(tmp_path / "without", (), flushes=30)
    hanging = Hanging()
    with pytest.warns(
        RuntimeWarning, match=r"Hanging was still at work .* of 30 flushes 30 weren't sent whole"
    ) as told:
        found, _ = train(tmp_path / "with", [hanging], flushes=30)
    hanging.let_go.set()
    assert len(told) == 1
    assert hanging.reached.is_set()
    assert not hanging.ended
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))
    assert_same(tmp_path / "with", tmp_path / "without")


def test_one_that_hangs_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "END_SECONDS", 0.5)
    hanging, kept = Hanging(), Kept()
    with pytest.warns(RuntimeWarning, match="Hanging"):
        train(tmp_path / "r", [kept, hanging])
    hanging.let_go.set()
    assert kept.ended == ["completed"]
    assert len({point.step for point in kept.points}) == 31


def test_a_slow_tracker_loses_the_oldest_flushes(tmp_path: Path) -> None:
    model, hanging = net(), Hanging()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with (  # noqa: PT031
        pytest.warns(RuntimeWarning, match="slower than the run: of 30 flushes 13 weren't sent"),
        tvlars_probe.record(model, optimizer, tmp_path / "r", export=[hanging]) as rec,
    ):
        for flush in range(30):
            loop(model, optimizer, range(flush, flush + 1), rec)
            rec.flush()
            if not flush:
                assert hanging.reached.wait(30)
        hanging.let_go.set()
    # The first was being sent; of those that came meanwhile the last 16 were kept.
    assert sorted({point.step for point in hanging.points}) == [0, *range(14, 30)]


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    kept, model = Kept(), net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[kept]) as rec:
        loop(model, optimizer, range(10), rec)
        state = rec.state_dict()
        loop(model, optimizer, range(10, 15), rec)
        rec.interrupted = True
    again = Kept()
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[again], resume=state) as rec:
        loop(model, optimizer, range(10, 20), rec)
    assert kept.ended == ["interrupted"]
    assert again.runs[0].run_id == kept.runs[0].run_id
    assert again.runs[0].first_step == 10
    assert min(point.step for point in again.points) == 10


def test_what_was_left_out_is_noted_once(tmp_path: Path) -> None:
    kept = Kept()
    _, rec = train(tmp_path / "r", [tvlars_probe.Export(kept, budget=5, layers=["0.weight"])])
    (note,) = tvlars_probe.open_run(rec.path).manifest.notes
    assert note.startswith(
        "export to Kept: left out: the figures of 5 of 6 tensors (--layers GLOB sends them); the totals"
    )
    assert note.endswith(kept.notes[0])
    assert (7, "l2_norm/grad/0.weight") in kept.values


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_sends_nothing(tmp_path: Path) -> None:
    kept, model = Kept(), net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", export=[kept]) as rec:
        loop(model, optimizer, range(3), rec)
        rec.flush()
        child = os.fork()
        if not child:
            rec.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        loop(model, optimizer, range(3, 5), rec)
    assert kept.ended == ["completed"]
    assert {point.step for point in kept.points} == {*range(5)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["aim"], r"unknown tracker 'aim' \(known: tensorboard, wandb, trackio, mlflow\)"),
        ([3], "takes names of trackers .* got 3"),
        (None, "takes names of trackers .* got None"),
        ([Kept], "takes names of trackers"),
        (["tensorboard", "tensorboard"], "names tensorboard twice"),
    ],
    ids=["unknown", "no exporter", "none", "a class", "twice"],
)
def test_what_is_no_tracker_is_refused_before_anything_is_made(given: Any, message: str, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(UserError, match=message):
        tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r", export=given)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "settings", [{"budget": 0}, {"budget": True}, {"layers": "fc"}, {"layers": [1]}, {"layers": None}], ids=str
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"budget of|give a list of patterns"):
        tvlars_probe.Export("tensorboard", **settings)


def test_patterns_may_come_from_any_iterable() -> None:
    patterns: Any = (name for name in ("0.*", "2.*"))
    assert tvlars_probe.Export("tensorboard", layers=patterns).layers == ("0.*", "2.*")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.exports.settings.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wandb isn't installed: pip install 'tvlars-probe\[wandb\]'"):
        live.LiveExports(["wandb"], opens=True)
    live.LiveExports(["wandb"], opens=False)  # another rank needs none


def test_a_tracker_that_draws_while_it_is_imported_changes_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(_: str) -> Any:
        random.random(), np.random.random()
        return types.SimpleNamespace(TrackioExporter=Kept)

    monkeypatch.setattr("tvlars_probe.exports.settings.find_spec", lambda _: True)
    monkeypatch.setattr("tvlars_probe.exports.settings.import_module", draw)
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    live.LiveExports(["trackio"], opens=True)
    assert (random.random(), np.random.random()) == expected
