"""A run for each rule in which something goes wrong in a known step, and the step in which the rule finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tvlars_probe
from tvlars_probe.data.registry import DataConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from torch.optim import Optimizer

STEP, SPIKE = 40, 160
"""The step in which something goes wrong, and that of a spike, which is to follow 128 steps of a model that learns."""


def _sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def _lars(model: nn.Module) -> Optimizer:
    return tvlars_probe.LARS(model.parameters(), lr=0.2, lars_adaptation_filter=True)


def _adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def _nothing(model: nn.Module, optimizer: Optimizer) -> None:
    pass


@dataclass(frozen=True)
class Planted:
    """What goes wrong.

    Attributes:
        about: in half a sentence.
        optimizer: makes the optimizer.
        before_step: changes something before the update of the step, when its gradients are there.
        mislabelled: whether each label of the step's batch is another class's.
        step: the step in which the rule is broken.
        after: steps after which the rule tells of it.
        dtype: of the weights.
        batch_size: samples of a step.
        pieces: in which a batch is computed; from two on, their noise is recorded.
    """

    about: str
    optimizer: Callable[[nn.Module], Optimizer] = _sgd
    before_step: Callable[[nn.Module, Optimizer], None] = _nothing
    mislabelled: bool = False
    step: int = STEP
    after: int = 0
    dtype: torch.dtype = torch.float32
    batch_size: int = 256
    pieces: int = 1


def _infinite_gradient(model: nn.Module, _: Optimizer) -> None:
    _gradients(model)[2][0] = float("inf")


def _large_weights(model: nn.Module, _: Optimizer) -> None:
    weight = next(model.parameters())
    weight.data.mul_(20.0 / weight.norm())


def _scaled_gradient(model: nn.Module, _: Optimizer) -> None:
    _gradients(model)[0].mul_(1e9)


def _large_rate(lr: float) -> Callable[[nn.Module, Optimizer], None]:
    def change(_: nn.Module, optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = lr

    return change


def _zeros(model: nn.Module, _: Optimizer) -> None:
    # Its gradient stays as it is, and moves it.
    [*model.parameters()][2].data.zero_()


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _tvlars(lmbda: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: tvlars_probe.TVLARS(model.parameters(), lr=5.0, lmbda=lmbda)


PLANTED = {
    "non_finite": Planted("one element of a gradient becomes infinite", before_step=_infinite_gradient),
    "loss_spike": Planted("the labels of one batch are shifted", mislabelled=True, step=SPIKE),
    "grad_spike": Planted("the labels of one batch are shifted", mislabelled=True, step=SPIKE),
    "ratio_clamped": Planted("a tensor's ‖w‖ becomes 20 under TVLARS", _tvlars(1e-4), _large_weights),
    "ratio_vanished": Planted("a gradient under LARS is left scaled by 1e9", _lars, _scaled_gradient),
    # Told in the step after it, whose trust ratio shows what a sound one is.
    "full_rate_from_zero": Planted("the last layer's weight becomes zero under LARS", _lars, _zeros, after=1),
    # 0.1 + exp(0.5·t) is 1e4 of its first value, 0.1 + exp(0.5), at t = 19.55: the 20th update is step 19.
    "phi_dead": Planted("λ_φ of TVLARS is 0.5", _tvlars(0.5), step=19),
    "weight_overwritten": Planted("the rate of SGD becomes 500", before_step=_large_rate(500.0)),
    "excluded_overwritten": Planted("the rate of LARS becomes 5e4", _lars, _large_rate(5e4)),
    "update_below_rounding": Planted("bfloat16 weights, AdamW at 1e-5", _adamw, step=0, dtype=torch.bfloat16),
    # The first stretch of 64 steps is judged in its last one.
    "batch_beyond_noise": Planted(
        "batches of 1,024 from the first step on",
        step=63,
        batch_size=1024,
        pieces=8,
    ),
}
"""By rule."""


def _digits(dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.Module]:
    """Images, labels, and a small network, always with the same weights."""
    torch.manual_seed(0)
    data = DataConfig(name="digits").load(1).train
    images, labels = data.images.reshape(len(data.images), -1).float(), data.labels
    images /= images.max()
    return images, labels, nn.Sequential(nn.Linear(images.shape[1], 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)


def plant(rule: str, path: Path) -> tuple[int, int | None]:
    """Train a small network on digits with the fault of that rule, and the rule alone on the watch.

    Returns:
        the step in which the rule is to tell of the fault, and that of its first finding in that step's flush; None
        where it found nothing, or found something before.
    """
    case = PLANTED[rule]
    images, labels, model = _digits(case.dtype)
    optimizer = case.optimizer(model)
    with tvlars_probe.record(model, optimizer, path, findings=(rule,), noise=case.pieces > 1) as rec:
        for step in range(case.step + case.after + 1):
            pick = torch.randint(len(images), (case.batch_size,))
            faulty = step == case.step
            told = (labels[pick] + (faulty and case.mislabelled)) % 10
            optimizer.zero_grad()
            total = torch.zeros(())
            for x, y in zip(images[pick].to(case.dtype).chunk(case.pieces), told.chunk(case.pieces), strict=True):
                loss = cross_entropy(model(x), y) / case.pieces
                loss.backward()
                total = total + loss.detach()
            if faulty:
                case.before_step(model, optimizer)
            optimizer.step()
            rec.log(loss=total, samples=case.batch_size)
        rec.flush()
        return case.step + case.after, (rec.findings[0].step if rec.findings else None)
