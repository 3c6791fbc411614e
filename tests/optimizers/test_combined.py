"""Two optimizers as one: the same steps as of two, under one schedule, in one state."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import tvlars_probe
from tvlars_probe import TVLARS, describe
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.combined import CombinedOptimizer

if TYPE_CHECKING:
    from pathlib import Path


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def two(net: nn.Module) -> list[torch.optim.Optimizer]:
    """One that counts its updates in its groups, and one that counts them in its state."""
    first, _, last = net.children()
    return [
        TVLARS(first.parameters(), lr=0.5, lmbda=0.3),
        torch.optim.AdamW([{"params": last.weight}, {"params": last.bias, "lr": 0.3}], lr=0.1),
    ]


def update(net: nn.Module, step: int, *optimizers: torch.optim.Optimizer) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    net(x).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_steps_as_two_do_under_one_schedule() -> None:
    net, other = model(), model()
    combined, apart = CombinedOptimizer(two(net)), two(other)
    schedules = [LambdaLR(one, lambda step: 1 / (step + 1)) for one in (combined, *apart)]
    for step in range(4):
        update(net, step, combined)
        update(other, step, *apart)
        for schedule in schedules:
            schedule.step()
    assert same(net, other)
    assert [group["lr"] for group in combined.param_groups] == pytest.approx([0.1, 0.02, 0.06])


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_it_goes_on_from_its_state_to_the_same_bits(way: str) -> None:
    whole, cut = model(), model()
    first, second = CombinedOptimizer(two(whole)), CombinedOptimizer(two(cut))
    for step in range(6):
        update(whole, step, first)
    for step in range(3):
        update(cut, step, second)
    again: Any
    if way == "state_dict":
        net = model()
        net.load_state_dict(cut.state_dict())
        again = CombinedOptimizer(two(net))
        again.load_state_dict(second.state_dict())
    else:
        net, again = copy.deepcopy((cut, second)) if way == "deepcopy" else pickle.loads(pickle.dumps((cut, second)))
    inside = [group for one in again.optimizers for group in one.param_groups]
    assert all(a is b for a, b in zip(again.param_groups, inside, strict=True))  # a schedule reaches them
    for step in range(3, 6):
        update(net, step, again)
    assert same(whole, net)


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    net, calls = model(), list[int]()
    combined = CombinedOptimizer(two(net))

    def closure() -> torch.Tensor:
        calls.append(1)
        net.zero_grad()
        loss: torch.Tensor = net(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    assert combined.step(closure).item() == before
    assert len(calls) == 2


def test_it_is_described_and_recorded_as_the_optimizers_inside(tmp_path: Path) -> None:
    net = model()
    combined = CombinedOptimizer(two(net))
    assert describe(combined) == tuple(group for one in two(net) for group in describe(one))
    with tvlars_probe.record(net, combined, tmp_path / "r") as rec:
        for step in range(3):
            update(net, step, combined)
            rec.log()
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert rows.groupby("step").parameter.nunique().tolist() == rows.groupby("step").size().tolist() == [4] * 3
    assert [group["optimizer"] for group in rec.manifest.groups] == ["TVLARS", "AdamW", "AdamW"]
    (bias,) = rows[(rows.step == 0) & (rows.parameter == "2.bias")].itertuples()
    assert bias.lr == pytest.approx(0.3)


def test_what_it_cannot_step_is_refused() -> None:
    net = model()
    with pytest.raises(UserError, match="takes no further group: make it anew"):
        CombinedOptimizer(two(net)).add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="more than one parameter group"):
        CombinedOptimizer([torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(net.parameters())])
