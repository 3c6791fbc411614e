"""A small model and its loop, written as strangers write theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tvlars_probe import LAMB, LARS, TVLARS

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
}

UNKNOWN: dict[str, Any] = {
    "adafactor": lambda params: torch.optim.Adafactor(params, 0.01),
    "nadam": lambda params: torch.optim.NAdam(params, 0.01),
    "rprop": lambda params: torch.optim.Rprop(params, 0.01),
}
"""Of torch's own, some whose rule no description holds."""


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
