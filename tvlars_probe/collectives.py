"""What processes do together: sum, maximum, broadcast, gather, agree. No other module calls torch's collectives.

`Ranks` is a group of processes as one of them sees it; with one process none of its methods communicates.
`all_reduce_sum` and `sum_over_ranks` are sums that autograd differentiates.
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
    """The processes that compute together.

    Every process must call the methods that communicate, and all in the same order: each call waits for the others.

    Attributes:
        device: where this process computes, and where its collectives want their tensors.
        rank: number of this process, 0 to world_size − 1.
        world_size: number of processes.
        group: their process group; None is the default one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def of_process_group(cls, device: torch.device | None = None, group: Any = None) -> Ranks:
        """All ranks of a process group, or this process alone if there is no process group.

        Args:
            device: where this process computes, by default the CPU.
            group: process group; None is the default one.
        """
        device = torch.device("cpu") if device is None else device
        if not is_distributed():
            return cls(device)
        return cls(device, dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def _global(self, rank: int) -> int:
        """The number that a rank of the group has in the default group: torch names a broadcast's source by it."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def sum(self, values: Tensor) -> Tensor:
        """Add the ranks' values elementwise, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Take the largest value of each element over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def agree(self, wishes: Sequence[int]) -> list[int]:
        """The largest value of each wish over the ranks; a flag is set if any rank has set it. The host waits."""
        if self.world_size == 1:
            return [int(wish) for wish in wishes]
        found: list[int] = self.max(torch.tensor([int(wish) for wish in wishes], device=self.device)).tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return bool(self.agree([flag])[0])

    def agree_within(self, wishes: Sequence[int], timeout: timedelta) -> list[int]:
        """`agree`, with a limit on the time to wait for the others.

        Raises:
            RuntimeError: another rank didn't call this within ``timeout``.
        """
        if self.world_size == 1:
            return [*wishes]
        values = torch.tensor(wishes, device=self.device)
        # Only an asynchronous collective takes a time limit of its own; others wait for the process group's.
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None  # torch returns None to processes outside the group
        work.wait(timeout)
        found: list[int] = values.tolist()
        return found

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every rank's tensors with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, self._global(0), group=self.group)

    def from_first(self, thing: Any) -> Any:
        """Return rank 0's ``thing`` on every rank; it may be anything that can be pickled."""
        return self.from_rank(0, thing)

    def from_rank(self, rank: int, thing: Any) -> Any:
        """Return the ``thing`` of one rank on every rank; it may be anything that can be pickled."""
        if self.world_size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, self._global(rank), group=self.group, device=self.device)
        return box[0]

    def flag_of_first(self, flag: bool) -> bool:
        """Return rank 0's ``flag`` on every rank: `from_first` without pickling, by one small tensor."""
        if self.world_size == 1:
            return flag
        message = torch.tensor([int(flag)], device=self.device)
        self.broadcast([message])
        return bool(message.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in the order of the ranks, on the CPU.

        Args:
            tensor: of the same shape and type on every rank.
        """
        if self.world_size == 1:
            return [tensor.cpu()]
        mine = tensor.to(self.device)  # NCCL gathers tensors of the device only
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self.group)
        return [other.cpu() for other in everyone]


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size(group: Any = None) -> int:
    """Number of processes in a group (None is the default one); 1 if there is no process group."""
    return dist.get_world_size(group) if is_distributed() else 1


class _AllReduceSum(torch.autograd.Function):
    """y = Σ_r x_r on every rank.

    Each x_r enters every rank's y, so the gradient of Σ_s L_s with respect to x_r is Σ_s ∂L_s/∂y: the vector-Jacobian
    product is the same sum again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        # A copy, because all_reduce works in place and x is the caller's; a contiguous one, because it takes no other.
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # By apply, not by all_reduce: the backward pass enters the graph too, so it can be differentiated in turn.
        return _AllReduceSum.apply(grad, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        # The derivative of a sum is the sum of the tangents. By apply, so that a backward pass may follow.
        return _AllReduceSum.apply(tangent, ctx.group)  # type: ignore[no-any-return]


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """Σ over ranks of ``x``, on every rank, differentiable to any order.

    If rank s computes L_s from the sum, a rank's gradient is that of Σ_s L_s with respect to its own ``x``. Every rank
    must therefore differentiate too, and equally often. Where W ranks each compute the same loss L from such sums, a
    rank's gradient is that of W·L through its own samples. The mean over ranks, which DistributedDataParallel takes,
    is then the gradient of L.
    """
    total: Tensor = _AllReduceSum.apply(x, group)
    return total


def sum_over_ranks(x: Tensor, group: Any = None) -> Tensor:
    """`all_reduce_sum` over several ranks; ``x`` itself if there is only one."""
    return x if world_size(group) == 1 else all_reduce_sum(x, group)
