"""One rank's copy of a phase's model, with what it needs to train."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch import nn

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.augmentation import Augmentation
    from tvlars_probe.data.images import TensorImages
    from tvlars_probe.runners.evaluation import Precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Replica:
    """A rank's part in the training of a model.

    Attributes:
        ranks: this process among the others.
        precision: how the model computes.
        images: the training images, on the device.
        augment: makes training batches of them.
        model: the model itself.
        ddp: what is called in training: the model under DDP, or itself where there is one rank.
    """

    ranks: Ranks
    precision: Precision
    images: TensorImages
    augment: Augmentation
    model: nn.Module
    ddp: nn.Module


def seed_rank(seed: int, ranks: Ranks) -> None:
    """Seed torch's generators, differently on each rank.

    The factor of 2²⁰ keeps apart the ranks of different seeds.
    """
    torch.manual_seed((seed << 20) + ranks.rank + 1)


def distribute(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model under DDP where there are several ranks, or itself where there is one."""
    if ranks.world_size == 1:
        return model
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    # No forward pass in training reads running statistics that change, so none has to broadcast them: evaluation and
    # probes do it themselves, and a checkpoint holds the first rank's. torch has renamed the switch.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    switch: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    # Gradients as views of DDP's buckets: one copy of them in memory instead of two.
    return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True, **switch)
