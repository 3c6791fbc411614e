"""Sums over the processes that hold parts of a sample, also as a step of a graph that is differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    """y = Σ_r x_r on every rank. Its vector-Jacobian product is the same sum again, to any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """Σ over ranks of ``x``, on every rank, differentiable as often as wanted.

    The derivative is that of the sum over ranks of what each rank makes of it: every rank must differentiate alike.
    """
    total: Tensor = _AllReduceSum.apply(x, group)
    return total


@dataclass(frozen=True, slots=True)
class Shards:
    """The ranks over which a sample is spread; one by default.

    Attributes:
        world_size: number of ranks.
        group: their process group, None for the default one.
    """

    world_size: int = 1
    group: Any = None

    @classmethod
    def of_process_group(cls) -> Shards:
        """All ranks of the default process group, or this process where there is none."""
        there = dist.is_available() and dist.is_initialized()
        return cls(dist.get_world_size()) if there else cls()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values
