from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig

NAMES = [name for name in OPTIMIZERS if hasattr(torch.optim, "Muon") or not OPTIMIZERS[name].rests]


def matrices() -> list[nn.Parameter]:
    """Those of an input's, a hidden and an output's layer."""
    return [nn.Parameter(torch.ones(3, 3)) for _ in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_built_with_what_it_takes(name: str) -> None:
    params = matrices()
    optimizer = OptimizerConfig(name=name).build(params)
    assert optimizer.param_groups[0]["lr"] == OPTIMIZERS[name].default_lr
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
    for p in params:
        p.grad = torch.ones(3, 3)
    optimizer.step()
    assert not any(torch.equal(p, torch.ones(3, 3)) for p in params)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_train_builds(name: str) -> None:
    built = describe(OptimizerConfig(name=name).build(matrices()))
    said = [OPTIMIZERS[one].describe({}) for one in (name, *OPTIMIZERS[name].rests[:1])]
    assert said == [dataclasses.replace(one, module="") for one in built]


def test_lars_and_tvlars_are_trained_with_both_filters() -> None:
    for name in ("lars", "tvlars"):
        group = OptimizerConfig(name=name).build([nn.Parameter(torch.ones(1))]).param_groups[0]
        assert group["weight_decay_filter"]
        assert group["lars_adaptation_filter"]


def test_settings_that_an_optimizer_does_not_take_leave_no_trace() -> None:
    assert OptimizerConfig(name="adam", lmbda=7.0).settings() == OptimizerConfig(name="adam").settings()
    assert OptimizerConfig(name="tvlars", lmbda=7.0).settings() != OptimizerConfig(name="tvlars").settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, r"unknown optimizer 'lion' \(known: lars, tvlars, lamb"),
        ({"lr": -1.0}, r"--lr -1 is outside its range \(allowed: 0 or more\)"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weight_decay": -1.0}, "--weight-decay -1"),
        ({"momentum": 1.0}, "--momentum 1"),
        ({"alpha": 0.0}, "--alpha 0"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "--nesterov needs"),
        ({"name": "muon", "muon_rest": "lars"}, r"unknown --muon-rest 'lars' \(known: adamw, sgd\)"),
        ({"name": "muon", "muon_rest": "sgd", "nesterov": True, "momentum": 0.0}, "--nesterov needs"),
        ({"muon_rest_lr": -1.0}, "--muon-rest-lr -1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings)


def test_only_what_the_rest_takes_is_among_muons_settings() -> None:
    plain = OptimizerConfig(name="muon").settings()
    assert plain == {"lr": 0.02, "weight_decay": 5e-4, "rest": {"name": "adamw", "lr": 0.001, "weight_decay": 5e-4}}
    assert OptimizerConfig(name="muon", muon_rest="adamw", momentum=0.5).settings() == plain
    assert OptimizerConfig(name="muon", muon_rest="sgd").settings()["rest"] == OptimizerConfig(
        name="sgd"
    ).settings() | {"name": "sgd"}
    assert OptimizerConfig(name="muon", muon_rest_lr=0.3).settings()["rest"]["lr"] == 0.3
    assert OptimizerConfig(muon_rest="sgd", muon_rest_lr=0.3).settings() == OptimizerConfig().settings()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_and_its_rest_step_as_torchs_two_do() -> None:
    """Each tensor alone, in an optimizer of its own, made by hand."""
    ours, theirs = nn.ParameterList(shaped()), nn.ParameterList(shaped())
    combined = OptimizerConfig(name="muon", lr=0.1, muon_rest="sgd", muon_rest_lr=0.3, momentum=0.8).build(ours)
    alone: list[torch.optim.Optimizer] = [torch.optim.Muon([theirs[2]], lr=0.1, weight_decay=5e-4)]
    others = [p for k, p in enumerate(theirs) if k != 2]
    alone += [torch.optim.SGD([p], lr=0.3, momentum=0.8, weight_decay=5e-4) for p in others]
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in (combined, *alone):
            optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def shaped() -> list[nn.Parameter]:
    """Of an input's and a hidden layer with biases, and of an output's layer."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((4, 3), (4,), (5, 4), (5,), (2, 5))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_an_older_torch_has_no_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"has no torch.optim.Muon \(allowed: torch 2.9 or later\): install a later"):
        OptimizerConfig(name="muon").build(matrices())


def test_excluded_tensors_have_their_own_rate() -> None:
    weight, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = OptimizerConfig(name="lars", lr=2.0, excluded_lr=0.01).build([bias, weight])
    assert [(g["lr"], [p.ndim for p in g["params"]]) for g in optimizer.param_groups] == [(2.0, [2]), (0.01, [1])]
    bias.grad, weight.grad = torch.ones(3), torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 0.99))


def test_by_default_they_have_the_full_rate_and_the_configuration_its_hash() -> None:
    assert len(OptimizerConfig(name="lars").build([nn.Parameter(torch.ones(1))]).param_groups) == 1
    assert "excluded_lr" not in OptimizerConfig(name="tvlars").settings()
    assert OptimizerConfig(name="tvlars", excluded_lr=0.1).settings()["excluded_lr"] == 0.1
