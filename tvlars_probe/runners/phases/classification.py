"""Training a classifier, on one rank or under DDP."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tvlars_probe.data.augmentation import augmentation
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.saver import note_other_ranks
from tvlars_probe.runners.evaluation import Tally, evaluate, loss_sum
from tvlars_probe.runners.launching.stop_signals import StopSignals
from tvlars_probe.runners.phases.loop import Training

if TYPE_CHECKING:
    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.batches import Share
    from tvlars_probe.data.images import TensorImages
    from tvlars_probe.runners.config import TrainConfig
    from tvlars_probe.runners.planning import Job


def train_classifier(ranks: Ranks, job: Job) -> int | None:
    """Make the run that ``job`` describes; every rank calls it.

    Returns:
        the signal that ended it early, if one did.
    """
    training = Classification.build(ranks, job.config)
    state = checkpoints.load(job.checkpoint, ranks.device) if job.checkpoint else None
    if state:
        training.restore(state, job)
    recorder = training.recorder(job, state, training.manifest(job), training.schedule.total_steps)
    with StopSignals(recorder) as stop, recorder:
        note_other_ranks(recorder, state, ranks)
        training.run(job, recorder)
    return stop.number if recorder.interrupted else None


class Classification(Training):
    """Cross-entropy by the optimizer and schedule of the run."""

    phase: ClassVar[str] = "train"

    @classmethod
    def build(cls, ranks: Ranks, config: TrainConfig) -> Classification:
        """Load the data and make everything, the same on every rank."""
        data = config.data.load(config.place.workers)
        return cls.assemble(ranks, config, data, augmentation(config.data, config.seed), epochs=config.epochs)

    def tally(self) -> Tally:
        return Tally(self.ranks.device)

    def update(self, share: Share, epoch: int, tally: Tally) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=self.precision.dtype, device=self.ranks.device)
        for index, piece in enumerate(share.pieces):
            x, y = self.augment(self.train_images, piece, epoch, self.precision.dtype)
            with self._reducing(index == len(share.pieces) - 1):
                with self.precision.context():
                    logits = self.ddp(x)
                loss = loss_sum(logits, y)
                # DDP averages over ranks: with this factor the average is the mean over the global batch.
                (loss * (self.ranks.world_size / share.batch_size)).backward()
            total += loss.detach()
            tally.add(logits.detach(), y, loss.detach())
        if not share.pieces:
            self._reduce_nothing()
        self.optimizer.step()
        self.scheduler.step()
        return total / max(share.size, 1)

    def _reduce_nothing(self) -> None:
        """Join the other ranks' reduction with a gradient of zero: the batch has fewer samples than ranks."""
        some = torch.arange(min(2, len(self.train_images)), device=self.ranks.device)
        x, _ = self.train_images.batch(some, self.precision.dtype)
        with self.precision.context():
            (self.ddp(x).sum() * 0.0).backward()

    def _reducing(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """Gradients are reduced over the ranks with the last piece of a batch only."""
        if now or not isinstance(self.ddp, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.ddp.no_sync()

    def evaluate(self, tally: Tally) -> dict[str, float | None]:
        """The epoch's row: scores in training, and of the model as it is now on each part of the data."""
        self.ranks.broadcast(self.model.buffers())
        figures = tally.scores(self.ranks).named("train")
        parts = (("train_eval", self._train_eval_sample()), ("val", self.data.val), ("test", self.data.test))
        for name, images in parts:
            if images is not None:
                scores = evaluate(self.model, images.to(self.ranks.device), self.ranks, self.precision)
                figures |= scores.named(name)
        return figures

    def _train_eval_sample(self) -> TensorImages | None:
        """The same training samples after each epoch and for every seed."""
        wanted, there = self.config.recording.train_eval_samples, len(self.data.train)
        if not wanted:
            return None
        order = torch.randperm(there, generator=torch.Generator().manual_seed(0))
        return self.data.train if wanted >= there else self.data.train.subset(order[:wanted])
