"""One optimizer a parameter, each stepped by a hook as soon as its gradient is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net, observed
from tvlars_probe import SharpnessProbe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


def optimizers_in_backward(model: nn.Module, build: Any) -> list[torch.optim.Optimizer]:
    """The optimizers, which step and clear the gradient in every backward pass from now on."""
    of = {p: build([p]) for p in model.parameters()}

    def step(p: Tensor) -> None:
        of[p].step()  # type: ignore[index]
        of[p].zero_grad()  # type: ignore[index]

    for p in of:
        p.register_post_accumulate_grad_hook(step)
    return [*of.values()]


def backward(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss


@pytest.mark.parametrize("tells", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "lars"])
def test_each_parameter_has_one_row_a_step(name: str, tells: bool, tmp_path: Path) -> None:
    """With the norms that one optimizer of all parameters, stepped after the pass, is measured to have."""
    recorded, watched = net(), net()
    optimizers, other = optimizers_in_backward(recorded, OPTIMIZERS[name]), OPTIMIZERS[name](watched.parameters())
    losses = []
    with tvlars_probe.record(recorded, optimizers, tmp_path / "r") as rec:
        for step in range(4):
            losses.append(backward(recorded, step).item())
            if tells:
                rec.log(loss=losses[-1], samples=16)
    run = tvlars_probe.open_run(rec.path)
    rows, steps = run.layers(), run.steps()
    assert rows.groupby("step").parameter.agg(["size", "nunique"]).to_numpy().tolist() == [[6, 6]] * 4
    assert steps.step.tolist() == [0, 1, 2, 3]
    if tells:
        assert steps.loss.tolist() == pytest.approx(losses)
    for step in range(4):
        seen = observed(watched, other, step)
        for row in rows[rows.step == step].itertuples():
            for column, value in seen[row.parameter].items():
                assert getattr(row, column) == pytest.approx(value, rel=1e-4, abs=1e-6), column
        whole = sum(of["grad_norm"] ** 2 for of in seen.values()) ** 0.5
        assert steps.grad_norm[step] == pytest.approx(whole, rel=1e-5)
    plain = net()
    optimizers_in_backward(plain, OPTIMIZERS[name])
    for step in range(4):
        backward(plain, step)
    assert all(torch.equal(p, q) for p, q in zip(recorded.parameters(), plain.parameters(), strict=True))


def test_a_parameter_without_a_gradient_has_no_row(tmp_path: Path) -> None:
    model = net()
    optimizers = optimizers_in_backward(model, OPTIMIZERS["sgd"])
    with tvlars_probe.record(model, optimizers, tmp_path / "r") as rec:
        for step in range(3):
            model[0].requires_grad_(step != 1)
            rec.log(loss=backward(model, step))
    rows = tvlars_probe.open_run(rec.path).layers()
    assert rows.groupby("step").size().tolist() == [6, 4, 6]


def test_the_hessian_is_measured_before_the_first_of_them_steps(tmp_path: Path) -> None:
    """In the middle of a backward pass, and it is the one of a loop that steps after it."""
    found = []
    for name in ("in backward", "after"):
        model = net()
        probe = SharpnessProbe(
            model, F.cross_entropy, [batch(1000)], every=2, operators=("hessian", "effective"), bn_mode="train"
        )
        build = OPTIMIZERS["sgd-momentum"]
        given: Any = optimizers_in_backward(model, build) if name == "in backward" else build(model.parameters())
        with tvlars_probe.record(model, given, tmp_path / name, probes=[probe], on_probe_error="raise") as rec:
            if name == "after":
                loop(model, given, range(5), rec)
            else:
                for step in range(5):
                    rec.log(loss=backward(model, step))
        found.append(tvlars_probe.open_run(rec.path).curvature()[["step", "operator", "value", "limit"]])
    assert found[0].operator.tolist() == ["hessian", *["hessian", "effective"] * 2]
    for column in ("step", "value", "limit"):
        assert found[0][column].tolist() == pytest.approx(found[1][column].tolist(), rel=1e-4, nan_ok=True)
