"""The recorder in plain loops, written as strangers write theirs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, UNKNOWN, batch, loop, net, observed
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", [*OPTIMIZERS, *UNKNOWN])
@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_a_recorded_loop_is_bit_identical(name: str, tmp_path: Path) -> None:
    recorded, plain, build = net(), net(), {**OPTIMIZERS, **UNKNOWN}[name]
    optimizer, other = build(recorded.parameters()), build(plain.parameters())
    torch.manual_seed(7)
    with tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec:
        loop(recorded, optimizer, range(5), rec)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    loop(plain, other, range(5))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(recorded.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


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


def test_tensors_that_go_in_one_step_are_all_in_the_finding(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        with torch.no_grad():
            model[4].weight[0, 0] = model[0].bias[0] = math.inf
        loop(model, optimizer, range(1), rec)
    finding = tvlars_probe.open_run(tmp_path / "r").manifest.finding
    assert finding is not None
    assert (finding["tensor"], finding["tensors"]) == ("0.bias", ["0.bias", "4.weight"])


def test_last_rates_are_those_of_the_last_update(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", detail="none") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.param_groups[0]["lr"] = 99.0  # a schedule has moved on
        rates = rec.last_rates()
    assert rates["1.weight"] == 0.5
    assert rates["0.weight"] == pytest.approx(0.5 * optimizer.last_step.trust_ratio[0].item())


def test_log_without_a_step_counts_for_nothing(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        rec.log(loss=1.0)  # as after a step that a gradient scaler skipped
        loop(model, optimizer, range(1), rec)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"detail": "all"}, "unknown detail 'all'"), ({"every": 0}, "every=0")],
    ids=["detail", "every"],
)
def test_settings_are_checked(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(UserError, match=message):
        tvlars_probe.record(model, OPTIMIZERS["lars"](model.parameters()), tmp_path / "r", **settings)


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
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
