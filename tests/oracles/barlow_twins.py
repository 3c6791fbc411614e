"""Barlow Twins' loss and BatchNorm written out in loops and closed forms, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def loss(first: Tensor, second: Tensor, lmbda: float) -> Tensor:
    """The paper's double sum over pairs of features, each correlation by its definition."""
    a, b = (columns(z) for z in (first, second))
    total = torch.zeros((), dtype=first.dtype)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            c = (a[:, i] * b[:, j]).mean()
            total = total + ((1 - c) ** 2 if i == j else lmbda * c**2)
    return total


def columns(z: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1 (but for BatchNorm's 1e-5)."""
    centred = z - z.mean(0)
    return centred / ((centred**2).mean(0) + 1e-5).sqrt()


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of images (samples, channels, height, width), by the whole batch's statistics."""
    rows = x.movedim(1, -1)
    return (columns(rows.reshape(-1, x.shape[1])) * weight + bias).view_as(rows).movedim(-1, 1)
