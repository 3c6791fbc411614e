"""Sums over the processes that hold parts of a sample, also as a step of a graph that is differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tvlars_probe.collectives import all_reduce_sum as all_reduce_sum

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


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

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's, in place: BatchNorm's running statistics differ from rank to rank."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0, group=self.group)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values
