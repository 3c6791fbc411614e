"""The table of steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tvlars_probe import LARS
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_table_of_steps(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["tvlars"](model.parameters())
    losses = []
    with tvlars_probe.record(model, optimizer, tmp_path / "r", total_steps=3) as rec:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=16, epoch=step, clip_scale=0.5)
            losses.append(loss.item())
    run = tvlars_probe.open_run(tmp_path / "r")
    frame, layers = run.steps(), run.layers()
    assert frame["loss"].tolist() == losses
    assert frame["samples"].tolist() == [16, 32, 48]
    assert frame["epoch"].tolist() == [0, 1, 2]
    assert frame["clip_scale"].tolist() == [0.5] * 3
    assert frame["phi"].tolist() == pytest.approx([1 / (0.1 + math.exp(0.1 * t)) for t in (1, 2, 3)])
    whole = layers.groupby("step")["grad_norm"].apply(lambda g: float(np.sqrt((g.astype(float) ** 2).sum())))
    assert frame["grad_norm"].tolist() == pytest.approx(whole.tolist(), rel=1e-6)
    assert (frame["step_seconds"] > 0).all()
    assert (frame["probe_seconds"] > 0).all()
    assert frame["time"].is_monotonic_increasing
    assert str(frame["time"].dt.tz) == "UTC"
    assert run.manifest.total_steps == 3
    assert run.manifest.segments[0]["last_step"] == 2
    assert run.status == "completed"


def test_what_is_not_told_is_null(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r"):
        loop(model, optimizer, range(2))
    frame = tvlars_probe.open_run(tmp_path / "r").steps()
    assert frame[["loss", "samples", "epoch", "clip_scale", "phi"]].isna().all(axis=None)
    assert frame["lr"].tolist() == [0.1, 0.1]


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_a_group_without_a_rate_has_none_in_the_trace(tmp_path: Path) -> None:
    class Own(torch.optim.SGD):
        """Takes a rate of its own making."""

        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad)

    model = net()
    optimizer = Own(model.parameters(), 0.1)
    optimizer.param_groups[0]["lr"] = None
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["loss"].notna().all()
    assert run.layers()["lr"].isna().all()
    assert math.isnan(run.manifest.groups[0]["lr"])


@pytest.mark.parametrize("detail", ["full", "norms", "none"])
def test_details_and_cadence(detail: Any, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", detail=detail, every=3) as rec:
        loop(model, optimizer, range(7), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    layers, steps = run.layers(), run.steps()
    assert steps["step"].tolist() == list(range(7))
    assert steps["loss"].notna().all()
    assert sorted(layers["step"].unique()) == ([] if detail == "none" else [0, 3, 6])
    assert layers["update_norm"].notna().all() == (detail != "norms" or layers.empty)
    assert steps["grad_norm"].notna().tolist() == [detail != "none" and s % 3 == 0 for s in range(7)]


def test_gradient_clipping_is_seen(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        x, y = batch(0)
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        rec.log(clip_scale=0.25)
    frame = tvlars_probe.open_run(tmp_path / "r").steps()
    assert frame["grad_norm"][0] == pytest.approx(0.01, rel=1e-3)


def test_epochs_are_logged_by_name(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        rec.log_epoch(epoch=0, train_loss=1.5, test_acc1=33.0)
        with pytest.raises(UserError, match="no column accuracy"):
            rec.log_epoch(epoch=0, accuracy=1.0)
    frame = tvlars_probe.open_run(tmp_path / "r").epochs()
    assert frame.loc[0, ["step", "epoch", "train_loss", "test_acc1"]].tolist() == [2, 0, 1.5, 33.0]
    assert math.isnan(frame.loc[0, "test_loss"])


def test_rows_outlive_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.probes.rows.buffer._MOST_ROWS", 4)
    monkeypatch.setattr("tvlars_probe.probes.rows.buffer._LEAST_ROWS", 1)
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(11), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == list(range(11))
    assert run.layers().groupby("step").size().tolist() == [6] * 11


def test_the_device_path_gives_the_same_figures(tmp_path: Path) -> None:
    frames = []
    for foreach in (False, True):
        model = net()
        optimizer = LARS(model.parameters(), 0.5, foreach=foreach)
        with tvlars_probe.record(model, optimizer, tmp_path / str(foreach)) as rec:
            loop(model, optimizer, range(3), rec)
        frames.append(tvlars_probe.open_run(tmp_path / str(foreach)).layers().drop(columns=["run", "parameter"]))
    np.testing.assert_allclose(frames[0].to_numpy(float), frames[1].to_numpy(float), rtol=1e-4, atol=1e-6)


def test_rows_are_on_disk_after_the_first_interval_without_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("tvlars_probe.traces.writer.time.monotonic", lambda: clock[0])
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(3), rec)
        assert not (tmp_path / "run" / "trace").exists()
        clock[0] = 6.0
        loop(model, optimizer, range(3, 5), rec)
        assert tvlars_probe.open_run(tmp_path / "run").steps().step.tolist() == [0, 1, 2, 3]
