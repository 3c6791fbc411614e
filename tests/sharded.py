"""A small model whole, and sharded by FSDP2, by tensor parallelism and by both; all are trained on the same batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_fsdp = pytest.mark.skipif(
    torch.__version__ < (2, 7),
    reason="torch 2.6's fully_shard needs streams that a CPU lacks, and its momentum misses terms of a gradient",
)

KINDS = {2: ("fsdp", "tp"), 4: ("fsdp", "fsdp and tp", "replicas of fsdp")}
"""How a model is sharded on so many ranks."""


class Net(nn.Module):
    """The head has three rows: of four ranks one has none of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.down(self.up(x).tanh())))
        return out


# Both ranks hold the norm's DTensors, whose gradients are terms of a sum; the head stays a whole tensor on each.
PLAN: dict[str, Any] = {
    "up": ColwiseParallel(),
    "down": RowwiseParallel(output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "head": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate(), use_local_output=True),
}


def sharded(kind: str, world_size: int) -> Net:
    """The model on this rank's part of a mesh over all ranks."""
    model, mesh = Net(), init_device_mesh("cpu", (world_size,))
    if kind in ("fsdp and tp", "replicas of fsdp"):
        mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("data", "model"))
    if "tp" in kind:
        parallelize_module(model, mesh["model"] if kind == "fsdp and tp" else mesh, PLAN)
    if "fsdp" in kind:
        for part in (model.up, model.down, model.norm, model):  # the root's own are those of the head
            fully_shard(part, mesh=mesh["data"] if kind == "fsdp and tp" else mesh)
    return model


def share(kind: str, rank: int, world_size: int) -> tuple[int, int]:
    """Which part of the batch this rank has, and of how many."""
    if kind == "tp":
        return 0, 1
    return (rank // (world_size // 2), 2) if kind == "fsdp and tp" else (rank, world_size)


def batch(step: int, part: tuple[int, int] = (0, 1)) -> Tensor:
    """A part of the batch of a step: (samples, sequence, features)."""
    whole = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
    return whole.chunk(part[1])[part[0]]


def losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: tuple[int, int] = (0, 1)
) -> Iterator[Tensor]:
    """Train; yield each step's loss."""
    for step in steps:
        optimizer.zero_grad()
        loss = model(batch(step, part)).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def whole(tensor: Tensor) -> Tensor:
    """All elements of a tensor, by torch's own way."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def farthest(model: nn.Module, twin: nn.Module) -> float:
    """The largest difference of two models' weights, in units of the tensor's largest one."""
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    return max(((whole(p) - q).abs().max() / q.abs().max()).item() for p, q in pairs)
