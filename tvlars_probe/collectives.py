"""Sums over processes as a step of a graph that is differentiated."""

from __future__ import annotations

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
    So where W ranks each compute the same loss L from such sums, a rank's gradient is that of W·L through its own
    samples, and the mean over ranks, which DistributedDataParallel takes, is the gradient of L.
    """
    total: Tensor = _AllReduceSum.apply(x, group)
    return total


def world_size(group: Any = None) -> int:
    """Processes in a group (None: the default one), 1 where there is none."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """`all_reduce_sum` where there are several ranks, ``x`` itself where there is one."""
    return x if world_size(group) == 1 else all_reduce_sum(x, group)
