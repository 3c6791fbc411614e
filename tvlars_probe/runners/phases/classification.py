"""Training a classifier."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

from tvlars_probe.data.augmentation import augmentation
from tvlars_probe.data.batches import BatchPlan
from tvlars_probe.models.batch_norm import synchronize_batch_norm
from tvlars_probe.runners.evaluation import Tally, evaluate, loss_sum
from tvlars_probe.runners.phases.phase import Phase

if TYPE_CHECKING:
    from torch import nn

    from tvlars_probe.data.augmentation import Augmentation
    from tvlars_probe.data.batches import Indices, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.optimizers.schedules import Schedule
    from tvlars_probe.runners.phases.phase import Batch
    from tvlars_probe.runners.phases.replica import Replica


class Classification(Phase):
    """Training with cross-entropy, by the run's optimizer and schedule."""

    @property
    def epochs(self) -> int:
        return self.config.epochs

    def plan(self, samples: int, *, rank: int = 0, world_size: int = 1) -> BatchPlan:
        config = self.config
        plan = BatchPlan(
            samples=samples,
            batch_size=config.batch_size,
            micro_batch=config.micro_batch,
            rank=rank,
            world_size=world_size,
            seed=config.seed,
            in_step=config.joins_ranks,
        )
        return plan if config.branch is None else config.branch.plan(plan, epochs=self.epochs)

    def build_schedule(self, plan: BatchPlan) -> Schedule:
        branch = self.config.branch
        return super().build_schedule(plan) if branch is None else branch.build_schedule(self.schedule, plan)

    @property
    def updates_before(self) -> int:
        return 0 if self.config.branch is None else self.config.branch.step

    def build_model(self, data: ImageData) -> nn.Module:
        model = self.config.model.build(channels=data.channels, num_classes=data.num_classes)
        return synchronize_batch_norm(model) if self.config.sync_bn else model

    def augmentation(self) -> Augmentation:
        return augmentation(self.config.data, self.config.seed)

    def tally(self, device: torch.device) -> Tally:
        return Tally(device)

    def backward(self, replica: Replica, share: Share, epoch: int, tally: Tally) -> Tensor:
        total = torch.zeros((), dtype=replica.precision.dtype, device=replica.ranks.device)
        for index, piece in enumerate(share.pieces):
            x, y = replica.augment(replica.images, piece, epoch, replica.precision.dtype)
            with _reducing(replica, now=index == len(share.pieces) - 1):
                with replica.precision.context():
                    logits = replica.ddp(x)
                loss = loss_sum(logits, y)
                # DDP averages gradients over ranks. With this factor the average is the gradient of the mean loss over
                # the global batch, however unequal the shares.
                (loss * (replica.ranks.world_size / share.batch_size)).backward()
            total += loss.detach()
            tally.add(logits.detach(), y, loss.detach())
        if not share.pieces:
            _reduce_nothing(replica)
        return total / max(share.size, 1)

    def evaluate(self, replica: Replica, data: ImageData, tally: Tally) -> dict[str, float | None]:
        figures = tally.scores(replica.ranks).named("train")
        parts = (("train_eval", self._train_eval_sample(data)), ("val", data.val), ("test", data.test))
        for name, images in parts:
            if images is not None:
                there = images.to(replica.ranks.device)
                figures |= evaluate(replica.model, there, replica.ranks, replica.precision).named(name)
        return figures

    def _train_eval_sample(self, data: ImageData) -> TensorImages | None:
        """Training samples to evaluate, the same after each epoch and for every seed; None where none is asked for."""
        wanted, there = self.config.recording.train_eval_samples, len(data.train)
        if not wanted:
            return None
        order = torch.randperm(there, generator=torch.Generator().manual_seed(0))
        return data.train if wanted >= there else data.train.subset(order[:wanted])

    def probe_batch(self, images: TensorImages, indices: Indices, dtype: torch.dtype) -> Batch:
        """Images without augmentation, and their labels."""
        return images.batch(torch.as_tensor(indices, device=images.images.device), dtype)

    def probe_outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(batch[0])
        return logits

    def loss_of_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch[1])


def _reducing(replica: Replica, *, now: bool) -> contextlib.AbstractContextManager[object]:
    """The context of a piece: DDP reduces gradients over the ranks only in the last one of a batch.

    The forward pass must be inside, too: DDP decides there whether the backward pass reduces.
    """
    if now or not isinstance(replica.ddp, DistributedDataParallel):
        return contextlib.nullcontext()
    return replica.ddp.no_sync()


def _reduce_nothing(replica: Replica) -> None:
    """Join the other ranks' reduction with a gradient of zero, where the batch has fewer samples than there are ranks.

    The pass changes this rank's BatchNorm statistics. Those that count are the first rank's, which always has samples.
    """
    # Two, since BatchNorm in training mode refuses one value per channel.
    some = torch.arange(min(2, len(replica.images)), device=replica.ranks.device)
    x, _ = replica.images.batch(some, replica.precision.dtype)
    with replica.precision.context():
        (replica.ddp(x).sum() * 0.0).backward()
