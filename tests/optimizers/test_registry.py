from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_is_built_with_what_it_takes(name: str) -> None:
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = OptimizerConfig(name=name).build([p])
    assert optimizer.param_groups[0]["lr"] == OPTIMIZERS[name].default_lr
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4
    p.grad = torch.ones(3, 3)
    optimizer.step()
    assert not torch.equal(p, torch.ones(3, 3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_says_what_train_builds(name: str) -> None:
    (built,) = describe(OptimizerConfig(name=name).build([nn.Parameter(torch.ones(3, 3))]))
    assert OPTIMIZERS[name].describe({}) == dataclasses.replace(built, module="")


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
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings)


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
