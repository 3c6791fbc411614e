"""Pretraining by Barlow Twins."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from tvlars_probe.data.batches import BatchPlan
from tvlars_probe.data.views import TwinViews
from tvlars_probe.models.barlow_twins import barlow_twins_loss, build_barlow_twins
from tvlars_probe.runners.evaluation import Tally
from tvlars_probe.runners.phases.phase import Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tvlars_probe.data.augmentation import Augmentation
    from tvlars_probe.data.batches import Indices, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.runners.phases.phase import Batch
    from tvlars_probe.runners.phases.replica import Replica


class Pretraining(Phase):
    """Barlow Twins by the run's optimizer and schedule. Its loss joins all samples of the global batch."""

    views: ClassVar[int] = 2
    is_sum_over_samples: ClassVar[bool] = False

    @property
    def epochs(self) -> int:
        return self.config.barlow.epochs

    @property
    def model_option(self) -> str:
        return f"--projector {self.config.barlow.projector}"

    def plan(self, samples: int, *, rank: int = 0, world_size: int = 1) -> BatchPlan:
        config = self.config
        return BatchPlan(
            samples=samples,
            batch_size=config.batch_size,
            rank=rank,
            world_size=world_size,
            seed=config.seed,
            in_step=True,
        )

    def build_model(self, data: ImageData) -> nn.Module:
        return build_barlow_twins(self.config.model, channels=data.channels, widths=self.config.barlow.widths)

    def augmentation(self) -> Augmentation:
        return TwinViews(seed=self.config.seed, flips=self.config.data.flips)

    def tally(self, device: torch.device) -> Tally:
        return Tally(device, classifies=False)

    def backward(self, replica: Replica, share: Share, epoch: int, tally: Tally) -> Tensor:
        # In step and without micro-batches a share is one piece, which may be empty.
        (piece,) = share.pieces
        views = replica.augment(replica.images, piece, epoch, replica.precision.dtype)
        with replica.precision.context():
            first, second = replica.ddp(*views)
        # The loss of the global batch, the same on every rank. The mean over ranks of what backward() adds, which DDP
        # takes, is its gradient. bfloat16 has too few digits for its sums over the batch.
        loss = barlow_twins_loss(_at_least_float32(first), _at_least_float32(second), self.config.barlow.lmbda)
        loss.backward()
        # Summed over ranks this counts the loss once per sample of the batch, so that batches weigh by their size.
        tally.add_loss(loss.detach() * share.size, share.size)
        return loss.detach()

    def evaluate(self, replica: Replica, data: ImageData, tally: Tally) -> dict[str, float | None]:
        return {"train_loss": tally.scores(replica.ranks).loss}

    def probe_batch(self, images: TensorImages, indices: Indices, dtype: torch.dtype) -> Batch:
        """Two views of each image, drawn with one seed for every run."""
        return TwinViews(seed=0, flips=self.config.data.flips)(images, indices, 0, dtype)

    def probe_outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = model(*batch)
        return both

    def loss_of_outputs(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """The loss over all ranks' samples, the same on every rank."""
        first, second = outputs
        return barlow_twins_loss(first, second, self.config.barlow.lmbda)


def _at_least_float32(z: Tensor) -> Tensor:
    return z.float() if z.dtype == torch.bfloat16 else z
