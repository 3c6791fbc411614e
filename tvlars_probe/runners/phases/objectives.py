"""The model and the loss of each phase of a run, from its configuration alone: for training, and for probes afterwards.

A phase is one of `tvlars_probe.runners.phases.modes.MODES`: train (a classifier), pretrain (Barlow Twins), linear (the
linear probe).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from tvlars_probe.data.batches import BatchPlan
from tvlars_probe.data.views import TwinViews
from tvlars_probe.models.barlow_twins import LinearProbe, barlow_twins_loss, build_barlow_twins, build_linear_probe
from tvlars_probe.models.batch_norm import synchronize_batch_norm
from tvlars_probe.optimizers.registry import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.data.batches import Indices
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.runners.config import TrainConfig

    Batch = tuple[Tensor, ...]

PROBE_MOMENTUM, PROBE_WEIGHT_DECAY = 0.9, 1e-6
"""Of the linear probe's SGD, as in Barlow Twins' own evaluation."""


def build_model(config: TrainConfig, data: ImageData, phase: str) -> nn.Module:
    """The model that is trained in a phase, with fresh weights from torch's global generator."""
    if phase == "pretrain":
        return build_barlow_twins(config.model, channels=data.channels, widths=config.barlow.widths)
    if phase == "linear":
        frozen = config.barlow.lr_backbone == 0
        return build_linear_probe(config.model, channels=data.channels, num_classes=data.num_classes, frozen=frozen)
    model = config.model.build(channels=data.channels, num_classes=data.num_classes)
    return synchronize_batch_norm(model) if config.sync_bn else model


def batch_plan(config: TrainConfig, samples: int, phase: str, *, rank: int = 0, world_size: int = 1) -> BatchPlan:
    """How a rank's epochs of a phase are cut."""
    probes = phase == "linear"
    return BatchPlan(
        samples=samples,
        batch_size=min(config.barlow.probe_batch_size, samples) if probes else config.batch_size,
        micro_batch=None if probes else config.micro_batch,
        rank=rank,
        world_size=world_size,
        seed=config.seed,
        in_step=config.barlow.lr_backbone > 0 if probes else config.joins_ranks,
    )


def build_optimizer(config: TrainConfig, model: nn.Module, phase: str) -> Optimizer:
    """The optimizer of a phase, of its model: the run's own, or the linear probe's SGD."""
    if not isinstance(model, LinearProbe):
        return config.optimizer.build(model.parameters())
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr": config.barlow.lr_classifier}]
    if not model.frozen:
        groups.append({"params": list(model.backbone.parameters()), "lr": config.barlow.lr_backbone})
    return OPTIMIZERS["sgd"].load()(groups, lr=0.0, momentum=PROBE_MOMENTUM, weight_decay=PROBE_WEIGHT_DECAY)


def batch_loss(config: TrainConfig, phase: str) -> Callable[[nn.Module, Batch], Tensor]:
    """Mean loss of a batch from `probe_batch` by the phase's model; in phase pretrain that of all ranks' samples."""
    return partial(_twin_loss, config.barlow.lmbda) if phase == "pretrain" else _cross_entropy


def is_sum_over_samples(phase: str) -> bool:
    """Whether the loss of a batch is the mean of its samples' losses, so that it may be computed in pieces."""
    return phase != "pretrain"


def probe_batch(
    config: TrainConfig, phase: str, images: TensorImages, indices: Indices, dtype: torch.dtype = torch.float32
) -> Batch:
    """Samples on which a phase's loss is probed: images and labels, or two views that are the same for every run."""
    if phase == "pretrain":
        return TwinViews(seed=0, flips=config.data.flips)(images, indices, 0, dtype)
    return images.batch(torch.as_tensor(indices, device=images.images.device), dtype)


def _twin_loss(lmbda: float, model: nn.Module, batch: Batch) -> Tensor:
    first, second = model(*batch)
    return barlow_twins_loss(first, second, lmbda)


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)
