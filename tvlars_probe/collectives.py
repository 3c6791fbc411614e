"""What processes do together: sum, maximum, broadcast, gather, agree. Nothing else calls torch's collectives.

`Ranks` is a group of processes as one of them sees it; with one process none of its methods communicates. The two
functions at the end are sums that stand inside a graph which is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that compute together. Every one of them calls the methods below, in the same order.

    Attributes:
        device: where this process computes, and where its collectives want their tensors.
        rank: this process, 0 to world_size − 1.
        world_size: number of processes.
        group: their process group; None is the default one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def of_process_group(cls, device: torch.device | None = None, group: Any = None) -> Ranks:
        """All ranks of a process group (the default one), or this process alone where there is none."""
        device = torch.device("cpu") if device is None else device
        if not is_distributed():
            return cls(device)
        return cls(device, dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    @property
    def _first(self) -> int:
        """Rank 0's number in the default group, by which torch names the source of a broadcast."""
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Largest value of each element over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def agree(self, wishes: Sequence[int]) -> list[int]:
        """The largest of each wish over the ranks: of flags, whether any rank has set them. The host waits for it."""
        if self.world_size == 1:
            return [int(wish) for wish in wishes]
        found: list[int] = self.max(torch.tensor([int(wish) for wish in wishes], device=self.device)).tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return bool(self.agree([flag])[0])

    def any_within(self, flag: bool, timeout: timedelta) -> bool:
        """`any`, for ranks that may not come.

        Raises:
            RuntimeError: one didn't call this within the time.
        """
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        work.wait(timeout)
        return bool(value.item())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's tensors, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, self._first, group=self.group)

    def from_first(self, thing: Any) -> Any:
        """Rank 0's ``thing`` on every rank; anything that can be pickled."""
        if self.world_size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, self._first, group=self.group, device=self.device)
        return box[0]

    def flag_of_first(self, flag: bool) -> bool:
        """Rank 0's ``flag`` on every rank: `from_first` at the price of one small tensor."""
        if self.world_size == 1:
            return flag
        message = torch.tensor([int(flag)], device=self.device)
        self.broadcast([message])
        return bool(message.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor (of one shape, on the CPU), on every rank."""
        if self.world_size == 1:
            return [tensor]
        mine = tensor.to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self.group)
        return [other.cpu() for other in everyone]


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size(group: Any = None) -> int:
    """Processes in a group (None: the default one), 1 where there is none."""
    return dist.get_world_size(group) if is_distributed() else 1


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


def sum_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """`all_reduce_sum` where there are several ranks, ``x`` itself where there is one."""
    return x if world_size(group) == 1 else all_reduce_sum(x, group)
