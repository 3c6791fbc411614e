"""Models, batches and optimizers of the checks: small, and alike on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tvlars_probe import LAMB, LARS, NLAMB, TVLARS

if TYPE_CHECKING:
    from collections.abc import Callable

FILTERS: dict[str, Any] = {"weight_decay_filter": True, "lars_adaptation_filter": True}

OURS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "LARS": lambda params, **given: LARS(params, **{"lr": 0.5, **FILTERS, **given}),
    "TVLARS": lambda params, **given: TVLARS(
        params, **{"lr": 0.5, "lmbda": 0.2, "capturable": True, **FILTERS, **given}
    ),
    "LAMB": lambda params, **given: LAMB(params, **{"lr": 0.01, "weight_decay": 5e-4, **given}),
    "NLAMB": lambda params, **given: NLAMB(params, **{"lr": 0.01, "weight_decay": 5e-4, **given}),
}

ALL: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **OURS,
    "TVLARS, counting in Python": lambda params: TVLARS(params, 0.5, lmbda=0.2, **FILTERS),
    "LARS, summed norms and clip": lambda params: LARS(params, 0.5, denominator="sum", trust_clip=True, **FILTERS),
    "SGD": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, weight_decay=5e-4),
    "AdamW": lambda params: torch.optim.AdamW(params, 1e-3),
}


def network(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Convolutions, BatchNorm and a head, the same weights on every device."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(),
        nn.Linear(72, 10),
    )  # fmt: skip
    return model.to(device, dtype)


def batch(device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """32 images of 8×8 with labels, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(32, 1, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator)
    return images.to(device, dtype), labels.to(device)


def train(rec: Any, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, steps: int) -> None:
    """Recorded steps on one batch, which lies on the device: to send it there would make the host wait."""
    x, y = data
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        rec.log(loss=loss, samples=len(x), epoch=0)
