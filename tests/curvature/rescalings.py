"""Small networks, and the two kinds of rescaling that a verdict on sharpness meets.

`PRESERVING` change the weights and not the function. `OF_THE_LOSS` change the scale of the outputs, or of the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Callable


class Attention(nn.Module):
    """One head over the four rows of an image, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        weights = (self.query(rows) @ self.key(rows).transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.value(rows)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-12), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


NETWORKS = {"mlp": mlp, "BatchNorm": batch_norm, "attention": Attention}


def built(name: str) -> Any:
    torch.manual_seed(0)
    return NETWORKS[name]().double()


def _factors(c: float, count: int) -> Tensor:
    """Factors from 1/c to c, another one for each unit."""
    return torch.linspace(-1, 1, count, dtype=torch.float64).mul(torch.tensor(c).double().log()).exp()


def before_batch_norm(model: Any, c: float) -> None:
    model[0].weight.mul_(c)


def channels_before_batch_norm(model: Any, c: float) -> None:
    model[0].weight.mul_(_factors(c, 3)[:, None, None, None])


def around_relu(model: Any, c: float) -> None:
    model[1].weight.mul_(c)
    model[1].bias.mul_(c)
    model[3].weight.div_(c)


def units_around_relu(model: Any, c: float) -> None:
    factors = _factors(c, 8)
    model[3].weight.mul_(factors[:, None])
    model[3].bias.mul_(factors)
    model[5].weight.div_(factors)


def query_against_key(model: Any, c: float) -> None:
    for p in model.query.parameters():
        p.mul_(c)
    for p in model.key.parameters():
        p.div_(c)


PRESERVING = {
    "before BatchNorm": ("BatchNorm", before_batch_norm),
    "channels before BatchNorm": ("BatchNorm", channels_before_batch_norm),
    "layers around a ReLU": ("mlp", around_relu),
    "units around a ReLU": ("mlp", units_around_relu),
    "query against key": ("attention", query_against_key),
}
"""By name the network, and what changes its weights by factors of c and 1/c."""

WHOLE_TENSORS = ("before BatchNorm", "layers around a ReLU", "query against key")
"""Of these, those with one factor for all of a tensor."""


def output_layer(model: Any, c: float) -> None:
    """Multiply the outputs by c, by the last layer."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    for p in last.parameters():
        p.mul_(c)


def rescaled(model: Any, change: Callable[[Any, float], None], c: float) -> Any:
    with torch.no_grad():
        change(model, c)
    return model


def at_temperature(c: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of outputs that are multiplied by c within the loss."""
    return lambda z, y: F.cross_entropy(c * z, y)
