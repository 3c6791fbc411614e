"""The recorder in plain loops, written as strangers write theirs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tvlars_probe import LAMB, LARS, TVLARS
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.probes import norms as norms_module
from tvlars_probe.runners.checkpoints.checking import check_run

if TYPE_CHECKING:
    from pathlib import Path

OPTIMIZERS: dict[str, Any] = {
    "lars": lambda params: LARS(params, 0.5, weight_decay_filter=True, lars_adaptation_filter=True),
    "lars-no-momentum": lambda params: LARS(params, 0.5, momentum=0.0),
    "lars-sum": lambda params: LARS(params, 0.5, momentum=0.0, denominator="sum"),
    "tvlars": lambda params: TVLARS(params, 0.5, lmbda=0.1),
    "lamb": lambda params: LAMB(params, 0.01, weight_decay=0.01),
    "sgd": lambda params: torch.optim.SGD(params, 0.1),
    "sgd-momentum": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-3),
    "sgd-nesterov": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, 0.01),
    "rmsprop": lambda params: torch.optim.RMSprop(params, 0.01),
    "adafactor": lambda params: torch.optim.Adafactor(params, 0.01),
}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rec: Any = None) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if rec is not None:
            rec.log(loss=loss, samples=len(x), epoch=0)


def observed(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, dict[str, float]]:
    """Make one step by hand and measure it in float64, tensor by tensor."""
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    grads = {n: p.grad.detach().double().clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return {
        n: {
            "weight_norm": before[n].norm().item(),
            "grad_norm": grads[n].norm().item(),
            "weight_grad_dot": (before[n] * grads[n]).sum().item(),
            "update_norm": (p.detach().double() - before[n]).norm().item(),
        }
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_recorded_is_what_happened(name: str, tmp_path: Path) -> None:
    recorded, watched = net(), net()
    optimizer, other = OPTIMIZERS[name](recorded.parameters()), OPTIMIZERS[name](watched.parameters())
    with tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec:
        loop(recorded, optimizer, range(4), rec)
    frame = tvlars_probe.open_run(tmp_path / "r").layers().set_index(["step", "parameter"])
    for step in range(4):
        for parameter, figures in observed(watched, other, step).items():
            row = frame.loc[(step, parameter)]
            for column, value in figures.items():
                assert row[column] == pytest.approx(value, rel=3e-5, abs=1e-7), (step, parameter, column)
            assert row["lr"] == pytest.approx(other.param_groups[0]["lr"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_recorded_loop_is_bit_identical(name: str, tmp_path: Path) -> None:
    recorded, plain = net(), net()
    optimizer, other = OPTIMIZERS[name](recorded.parameters()), OPTIMIZERS[name](plain.parameters())
    torch.manual_seed(7)
    with tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec:
        loop(recorded, optimizer, range(5), rec)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    loop(plain, other, range(5))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(recorded.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_trust_ratio_is_what_is_known_of_it(tmp_path: Path) -> None:
    ratios = {}
    for name in ("lars", "sgd", "adafactor"):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            loop(model, optimizer, range(1), rec)
        ratios[name] = tvlars_probe.open_run(tmp_path / name).layers().set_index("parameter")["trust_ratio"]
    assert ratios["lars"]["1.weight"] == ratios["lars"]["4.bias"] == 1.0  # excluded
    assert 0 < ratios["lars"]["0.weight"] < 1
    assert (ratios["sgd"] == 1).all()
    assert ratios["adafactor"].isna().all()  # has one, which isn't known


def test_columns_that_an_optimizer_lacks_are_null(tmp_path: Path) -> None:
    filled = {}
    for name in ("lars", "tvlars", "lamb", "sgd"):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            loop(model, optimizer, range(2), rec)
        frame = tvlars_probe.open_run(tmp_path / name).layers()
        filled[name] = {c for c in ("direction_norm", "adam_norm", "weight_adam_dot", "phi") if frame[c].notna().all()}
        assert all(frame[c].isna().all() for c in {"direction_norm", "adam_norm", "phi"} - filled[name])
    assert filled == {
        "lars": {"direction_norm"},
        "tvlars": {"direction_norm", "phi"},
        "lamb": {"direction_norm", "adam_norm", "weight_adam_dot"},
        "sgd": set(),
    }


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


def test_two_optimizers_make_one_step(tmp_path: Path) -> None:
    model = net()
    slow, fast = OPTIMIZERS["lars"](model[:2].parameters()), OPTIMIZERS["sgd"](model[4].parameters())
    with tvlars_probe.record(model, [slow, fast], tmp_path / "r") as rec:
        for step in range(3):
            x, y = batch(step)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            slow.step()
            fast.step()
            rec.log(loss=loss, samples=16)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["samples"].tolist() == [16, 32, 48]
    frame = run.layers().set_index(["step", "parameter"])
    assert len(frame) == 3 * 6
    assert frame.loc[(2, "0.weight"), "lr"] == 0.5
    assert frame.loc[(2, "4.weight"), "lr"] == pytest.approx(0.1)
    table = run.parameters().set_index("name")
    assert table.loc["0.weight", ["optimizer", "adapted"]].tolist() == [0, True]
    assert table.loc["4.weight", ["optimizer", "adapted"]].tolist() == [1, False]


def test_a_layer_frozen_and_unfrozen_later(tmp_path: Path) -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        model[0].requires_grad_(True)
        loop(model, optimizer, range(2, 4), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    counts = run.layers().groupby("step")["parameter"].apply(lambda p: sorted(p.astype(str)))
    assert counts[1] == ["1.bias", "1.weight", "4.bias", "4.weight"]
    assert counts[2] == ["0.bias", "0.weight", "1.bias", "1.weight", "4.bias", "4.weight"]
    assert run.parameters()["trainable"].all()


def test_a_group_added_later_is_followed(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["tvlars"](model[4].parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.125})
        loop(model, optimizer, range(2, 4), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.layers().groupby("step").size().tolist() == [2, 2, 4, 4]
    frame = run.layers().set_index(["step", "parameter"])
    assert frame.loc[(3, "0.weight"), "lr"] == 0.125
    assert len(run.manifest.groups) == 2


def test_tied_weights_and_wrappers_and_strangers(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(x)))  # type: ignore[no-any-return]

    model, scale = Tied(), nn.Parameter(torch.ones(()))
    wrapped = nn.DataParallel(model)
    optimizer = LARS([{"params": model.parameters()}, {"params": [scale]}], 0.1)
    with tvlars_probe.record(wrapped, optimizer, tmp_path / "r") as rec:
        loss = F.cross_entropy(model(torch.tensor([1, 2])) * scale, torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        rec.log(loss=loss)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.layers()["parameter"].tolist() == ["embed.weight", "norm.weight", "norm.bias", "optimizer0.group1.0"]
    table = run.parameters().set_index("name")
    assert table.loc["embed.weight", "aliases"] == ["head.weight"]
    assert table["kind"].to_dict() == {
        "embed.weight": "other", "norm.weight": "norm", "norm.bias": "norm", "optimizer0.group1.0": "other",
    }  # fmt: skip


def test_a_compiled_model_keeps_its_names(tmp_path: Path) -> None:
    model = net()
    model[4] = torch.compile(model[4], backend="eager")  # type: ignore[assignment]
    compiled = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["lars"](compiled.parameters())
    with tvlars_probe.record(compiled, optimizer, tmp_path / "r") as rec:
        loop(compiled, optimizer, range(2), rec)
    names = tvlars_probe.open_run(tmp_path / "r").layers()["parameter"].unique().tolist()
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]


def test_a_closure_is_recorded_with_its_own_gradients(tmp_path: Path) -> None:
    model, plain = net(), net()
    optimizer, other = OPTIMIZERS["sgd"](model.parameters()), OPTIMIZERS["sgd"](plain.parameters())

    def closure() -> Tensor:
        x, y = batch(0)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with tvlars_probe.record(model, optimizer, tmp_path / "r"):
        optimizer.step(closure)
        optimizer.step(closure=closure)
    frame = tvlars_probe.open_run(tmp_path / "r").layers().set_index(["step", "parameter"])
    figures = observed(plain, other, 0)
    assert frame.loc[(0, "0.weight"), "grad_norm"] == pytest.approx(figures["0.weight"]["grad_norm"], rel=1e-5)
    assert frame.index.get_level_values("step").max() == 1


def test_a_scaled_step_is_recorded_unscaled_and_a_skipped_one_not_at_all(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if step == 1:
                model[0].weight.grad.fill_(math.inf)
            scaler.step(optimizer)
            scaler.update()
            rec.log(loss=loss, samples=16)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == [0, 1, 2]
    assert run.steps()["samples"].tolist() == [16, 32, 48]
    assert np.isfinite(run.layers()["grad_norm"]).all()


def test_a_fused_optimizer_that_unscales_inside_its_step(tmp_path: Path) -> None:
    model, plain = net(), net()
    fused, other = torch.optim.SGD(model.parameters(), 0.1, fused=True), torch.optim.SGD(plain.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with tvlars_probe.record(model, fused, tmp_path / "r") as rec:
        for step in range(3):
            x, y = batch(step)
            fused.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if step == 1:
                model[0].weight.grad.fill_(math.inf)
            scaler.step(fused)
            scaler.update()
            rec.log(loss=loss, samples=16)
    run = tvlars_probe.open_run(tmp_path / "r")
    frame = run.layers().set_index(["step", "parameter"])
    for step, batch_index in ((0, 0), (1, 2)):
        figures = observed(plain, other, batch_index)
        assert frame.loc[(step, "0.weight"), "grad_norm"] == pytest.approx(figures["0.weight"]["grad_norm"], rel=1e-4)
    assert run.steps()["step"].tolist() == [0, 1]


def test_a_loss_that_is_not_finite_is_found_with_its_tensor(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        assert not rec.diverged
        with torch.no_grad():
            model[4].weight[0, 0] = math.nan
        loop(model, optimizer, range(3, 5), rec)
        assert rec.diverged
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "diverged"
    assert run.manifest.finding == {"step": 3, "loss": "nan", "tensor": "4.weight", "quantity": "weight_norm"}
    assert len(run.steps()) == 5


def test_an_exception_keeps_the_trace_and_lets_go_of_the_optimizer(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with (
        pytest.raises(ZeroDivisionError),
        tvlars_probe.record(model, optimizer, tmp_path / "r") as rec,
    ):
        loop(model, optimizer, range(3), rec)
        raise ZeroDivisionError("mine")
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "failed"
    assert run.manifest.notes == ["ZeroDivisionError: mine"]
    assert len(run.steps()) == 3
    loop(model, optimizer, range(3, 5))
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 3


def test_a_keyboard_interrupt_is_an_interruption(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with pytest.raises(KeyboardInterrupt), tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        raise KeyboardInterrupt
    assert tvlars_probe.open_run(tmp_path / "r").status == "interrupted"


def test_recording_continues_from_a_saved_state(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["tvlars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        state = rec.state_dict()
        loop(model, optimizer, range(3, 5), rec)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state) as rec:
        assert rec.step == 3
        loop(model, optimizer, range(5, 9), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == list(range(7))
    assert run.steps()["samples"].tolist() == [16 * n for n in range(1, 8)]
    assert [(s["first_step"], s["last_step"]) for s in run.manifest.segments] == [(0, 4), (3, 6)]
    assert len(list((tmp_path / "r" / "aside").rglob("*.parquet"))) == 2


def test_last_rates_are_those_of_the_last_update(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", detail="none") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.param_groups[0]["lr"] = 99.0  # a schedule has moved on
        rates = rec.last_rates()
    assert rates["1.weight"] == 0.5
    assert rates["0.weight"] == pytest.approx(0.5 * optimizer.last_step.trust_ratio[0].item())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r"):
        pass
    with (
        pytest.raises(RunDirectoryError, match="already holds a run: choose another folder"),
        tvlars_probe.record(model, optimizer, tmp_path / "r"),
    ):
        raise AssertionError("not reached")


def test_log_without_a_step_counts_for_nothing(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        rec.log(loss=1.0)  # as after a step that a gradient scaler skipped
        loop(model, optimizer, range(1), rec)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 1


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"detail": "all"}, "unknown detail 'all'"), ({"every": 0}, "every=0")],
    ids=["detail", "every"],
)
def test_settings_are_checked(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(UserError, match=message):
        tvlars_probe.record(model, OPTIMIZERS["lars"](model.parameters()), tmp_path / "r", **settings)


def test_rows_outlive_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.probes.buffer._MOST_ROWS", 4)
    monkeypatch.setattr("tvlars_probe.probes.buffer._LEAST_ROWS", 1)
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


def test_a_recording_of_many_parts_can_be_continued_from_an_early_state(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    states = []
    with tvlars_probe.record(model, optimizer, tmp_path / "run", config={"a": 1}, total_steps=200) as rec:
        for step in range(180):
            loop(model, optimizer, range(step, step + 1), rec)
            states.append(rec.state_dict())
    for step in (170, 40):  # a boundary that parts end at, and one long merged over
        with tvlars_probe.record(model, optimizer, tmp_path / "run", resume=states[step - 1]) as rec:
            assert rec.step == step
        run = tvlars_probe.open_run(tmp_path / "run")
        assert run.steps().step.tolist() == list(range(step))
        assert sorted({*run.layers().step}) == list(range(step))
        assert run.manifest.config == {"a": 1}
        assert run.manifest.total_steps == 200


def test_update_norm_in_bfloat16_is_of_the_update_that_was_applied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    before = model.weight.detach().double().clone()
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loss = model(torch.randn(8, 64, dtype=torch.bfloat16)).square().mean()
        loss.backward()
        optimizer.step()
        rec.log(loss=loss)
    rows = tvlars_probe.open_run(tmp_path / "run").layers().set_index("parameter")
    applied = (model.weight.detach().double() - before).norm().item()
    assert rows.update_norm["weight"] == pytest.approx(applied, rel=1e-3)


def test_figures_may_be_tensors_and_arrays_and_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(1))
        rec.log(loss=torch.tensor([1.0]), samples=torch.tensor(16), clip_scale=torch.tensor(0.5))  # type: ignore[arg-type]
        rec.log_epoch(epoch=0, train_loss=torch.tensor(0.25), test_loss=np.float32(0.5))  # type: ignore[arg-type]
        loop(model, optimizer, range(1, 2))
        with pytest.raises(UserError, match=r"samples=1e\+30 is no count: give a whole number from 0 to 2\*\*63 - 1"):
            rec.log(samples=10**30)
        with pytest.raises(UserError, match="clip_scale='half' is no number"):
            rec.log(clip_scale="half")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="mean loss, one number"):
            rec.log(loss=torch.ones(3))
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.steps().clip_scale.iloc[0] == 0.5
    assert run.manifest.final["test_loss"] == 0.5


def test_a_failure_at_the_last_flush_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(OSError, match="No space"), tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        monkeypatch.setattr("tvlars_probe.traces.writer.write_part", full)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.status == "failed"
    assert "No space left" in run.manifest.notes[-1]


def test_a_foreign_attribute_called_last_step_is_not_believed(tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        last_step = 0

    model = net()
    optimizer = Counting(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
    assert tvlars_probe.open_run(tmp_path / "run").layers().weight_norm.notna().all()


def test_sparse_gradients_and_complex_weights_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, sparse=True)
    phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizers = [torch.optim.SGD(table.parameters(), lr=0.1), torch.optim.Adam([phase], lr=0.1)]
    weight, value = table.weight.detach().clone(), phase.detach().clone()
    with tvlars_probe.record(table, optimizers, tmp_path / "run") as rec:
        loss = table(torch.tensor([1, 1, 3])).sum() + phase.abs().square().sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        rec.log(loss=loss)
    rows = tvlars_probe.open_run(tmp_path / "run").layers().set_index("parameter")
    assert rows.grad_norm["weight"] == pytest.approx((4 * 4 + 4) ** 0.5)
    assert rows.weight_norm["optimizer1.group0.0"] == pytest.approx(value.abs().norm().item())
    assert rows.update_norm["weight"] == pytest.approx((table.weight - weight).norm().item(), rel=1e-5)


def test_an_optimizer_that_ignores_its_closure_is_recorded_without_norms(tmp_path: Path) -> None:
    class Deaf(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            pass

    model = net()
    optimizer = Deaf(model.parameters(), {"lr": 0.1})
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step(lambda: 0.0)
        rec.log(loss=1.0)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.steps().loss.tolist() == [1.0]


def test_what_is_no_optimizer_is_refused_and_a_step_that_is_never_seen_is_warned_of(tmp_path: Path) -> None:
    class Wrapper:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(UserError, match="got Wrapper"):
        tvlars_probe.record(model, Wrapper(optimizer), tmp_path / "run")  # type: ignore[arg-type]
    rec = tvlars_probe.record(model, optimizer, tmp_path / "run")
    with pytest.raises(UserError, match="use it as 'with"):
        rec.log(loss=1.0)
    with pytest.warns(UserWarning, match="no step of the optimizer was seen"), rec:
        rec.log(loss=1.0)


def test_a_loop_that_logs_before_it_steps_is_warned(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rec = tvlars_probe.record(model, optimizer, tmp_path / "run").__enter__()
    for step in range(3):
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        rec.log(loss=float(step))
        optimizer.step()
    with pytest.warns(UserWarning, match="Call it after step"):
        rec.__exit__(None, None, None)


def test_parameters_that_are_exchanged_keep_their_own_names(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.0)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.param_groups[0]["params"] = [model[4].weight]
        loop(model, optimizer, range(2, 4), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").layers()
    assert rows.parameter.tolist() == ["0.weight"] * 2 + ["4.weight"] * 2
    assert rows.weight_norm.iloc[2] == pytest.approx(model[4].weight.norm().item(), rel=1e-6)


def test_the_lock_is_let_go_though_a_forked_process_holds_it_too(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        state = rec.state_dict()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", resume=state) as rec:
        assert rec.step == 2
    os.close(writer)
    os.waitpid(child, 0)


def test_of_a_large_model_the_copies_that_update_norm_needs_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms_module, "SNAPSHOT_ELEMENTS", 3)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    applied = {}
    with tvlars_probe.record(model, optimizer, tmp_path / "r", every=2) as rec:
        for step in range(41):
            before = model.weight.detach().clone()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            applied[step] = (model.weight.detach() - before).norm().item()
            assert not rec._rows.layout.readers[0]._snapshots
    rows = tvlars_probe.open_run(tmp_path / "r").layers(["step", "weight_norm", "update_norm"], parameters=["weight"])
    assert rows.weight_norm.notna().all()
    read = rows[rows.update_norm.notna()]
    assert read.step.tolist() == [0, 20, 40]
    assert read.update_norm.tolist() == pytest.approx([applied[step] for step in (0, 20, 40)], rel=1e-5)


def test_rows_lost_before_a_saved_state_are_a_gap_that_is_told(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        rec.state_dict()
        loop(model, optimizer, range(3, 6), rec)
        state = rec.state_dict()
    for table in ("steps", "layers"):
        parts = sorted((tmp_path / "r" / "trace" / table).iterdir())
        assert len(parts) == 2
        parts[1].unlink()
    with tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state) as rec:
        loop(model, optimizer, range(6, 8), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == [0, 1, 2, 6, 7]
    assert {(g["table"], g["first_step"], g["last_step"]) for g in run.manifest.gaps} == {
        (table, 3, 5) for table in ("steps", "layers", "epochs")
    }
    found = check_run(tmp_path / "r")
    assert not found.faults
    assert "steps lacks steps 3 to 5: not there when the run was continued" in found.notes


def test_a_recorder_is_entered_once(tmp_path: Path) -> None:
    model = net()
    with tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r") as rec:
        for _ in range(2):
            with pytest.raises(UserError, match="entered before"):
                rec.__enter__()
    assert tvlars_probe.open_run(tmp_path / "r").status == "completed"


def test_a_recorder_that_is_never_left_loses_no_row(tmp_path: Path) -> None:
    script = (
        "import torch, tvlars_probe\n"
        "model = torch.nn.Linear(2, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "rec = tvlars_probe.record(model, optimizer, 'r').__enter__()\n"
        "for _ in range(5):\n"
        "    model(torch.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert "was never left: use it as a context manager" in done.stderr
    run = tvlars_probe.open_run(tmp_path / "r")
    assert (run.status, len(run.steps())) == ("interrupted", 5)


def test_the_home_folder_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, "~/r") as rec:
        loop(model, optimizer, range(2), rec)
    assert (tmp_path / "r" / "run.json").is_file()
    assert len(tvlars_probe.open_run("~/r").steps()) == len(tvlars_probe.open_runs("~/r*").steps()) == 2


def test_a_forked_child_that_trains_on_adds_no_row(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        child = os.fork()
        if not child:
            refused = 0
            loop(model, optimizer, range(3, 6))
            for call in (rec.flush, rec.state_dict, lambda: rec.log(loss=1.0), lambda: rec.log_epoch(epoch=0)):
                try:
                    call()
                except UserError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        loop(model, optimizer, range(3, 5), rec)
    assert tvlars_probe.open_run(tmp_path / "r").steps()["step"].tolist() == list(range(5))
    assert not check_run(tmp_path / "r").faults


def test_a_loop_may_change_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, "r") as rec:
        loop(model, optimizer, range(2), rec)
        os.chdir("elsewhere")
        rec.flush()
        loop(model, optimizer, range(2, 4), rec)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -5}, "step is -5"),
        ({"step": 2.5}, "step is 2.5"),
        ({"step": 10**30}, "step is 1000"),
        ({"phase": 3}, "phase is 3"),
        ({"rates": [1]}, "rates is"),
        ({"rates": {"0.weight": -1.0}}, "the rate of '0.weight' is -1.0"),
        ({"samples": "q"}, "samples is 'q'"),
        ({"last_epoch": 99}, "its last epoch ended after 99 updates of 3"),
        ({"probes": 3}, "probes is 3"),
    ],
)
def test_a_state_that_is_none_is_refused_and_nothing_changed(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        state = rec.state_dict()
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"resume= takes what rec.state_dict.. gave: .*{message}"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", resume={**state, **change})
    with pytest.raises(UserError, match="it lacks"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", resume={"step": 3})
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before


def test_before_and_after_its_block_a_recorder_refuses(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    recorder = tvlars_probe.record(model, optimizer, tmp_path / "r")
    calls = (recorder.flush, recorder.state_dict, lambda: recorder.log(loss=1.0), lambda: recorder.log_epoch(epoch=0))
    for call in calls:
        with pytest.raises(UserError, match="isn't recording"):
            call()
    with recorder:
        loop(model, optimizer, range(2), recorder)
    for call in calls:
        with pytest.raises(UserError, match="isn't recording"):
            call()
    assert tvlars_probe.open_run(tmp_path / "r").epochs().empty


@pytest.mark.parametrize(
    "told",
    [
        {"loss": "a"}, {"loss": 1j}, {"loss": [1.0]}, {"loss": torch.tensor(1j)}, {"samples": -3}, {"samples": 2.5},
        {"epoch": -1}, {"epoch": "x"}, {"epoch": 1 << 70}, {"clip_scale": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_figures_that_are_none_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(1))
        with pytest.raises(UserError):
            rec.log(**told)
        if "epoch" in told:
            with pytest.raises(UserError):
                rec.log_epoch(**told)
        with pytest.raises(UserError, match="step isn't told"):
            rec.log_epoch(epoch=0, step=7)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 1
