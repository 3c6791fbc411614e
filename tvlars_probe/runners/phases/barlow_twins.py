"""Barlow Twins and then its linear probe: two phases of one run and one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from tvlars_probe.data.augmentation import augmentation
from tvlars_probe.data.views import TwinViews
from tvlars_probe.models.barlow_twins import barlow_twins_loss
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.saver import note_other_ranks
from tvlars_probe.runners.evaluation import Tally
from tvlars_probe.runners.launching.stop_signals import StopSignals
from tvlars_probe.runners.phases.classification import Classification
from tvlars_probe.runners.phases.loop import Training

if TYPE_CHECKING:
    from torch import Tensor

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.batches import Share
    from tvlars_probe.runners.config import TrainConfig
    from tvlars_probe.runners.planning import Job


def train_barlow_twins(ranks: Ranks, job: Job) -> int | None:
    """Make the run that ``job`` describes; every rank calls it.

    Returns:
        the signal that ended it early, if one did.
    """
    state = checkpoints.load(job.checkpoint, ranks.device) if job.checkpoint else None
    pretraining = Pretraining.build(ranks, job.config)
    probing = Probing.after(pretraining)
    began_probing = state is not None and state["phase"] == Probing.phase
    training: Training = probing if began_probing else pretraining
    if state:
        training.restore(state, job)
    manifest = pretraining.manifest(job)
    manifest.phases.append(probing.describe())
    total_steps = pretraining.schedule.total_steps + probing.schedule.total_steps
    recorder = training.recorder(job, state, manifest, total_steps)
    with StopSignals(recorder) as stop, recorder:
        note_other_ranks(recorder, state, ranks)
        training.run(job, recorder)
        if not (began_probing or recorder.diverged or recorder.interrupted):
            probing.take_backbone(pretraining)
            recorder.begin_phase(probing.phase, probing.model, probing.optimizer, probes=probing.probes())
            probing.run(job, recorder)
    return stop.number if recorder.interrupted else None


class Pretraining(Training):
    """Barlow Twins by the optimizer and schedule of the run."""

    phase: ClassVar[str] = "pretrain"

    @classmethod
    def build(cls, ranks: Ranks, config: TrainConfig) -> Pretraining:
        data = config.data.load(config.place.workers)
        views = TwinViews(seed=config.seed, flips=config.data.flips)
        return cls.assemble(ranks, config, data, views, epochs=config.barlow.epochs)

    def tally(self) -> Tally:
        return Tally(self.ranks.device, classifies=False)

    def update(self, share: Share, epoch: int, tally: Tally) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        (piece,) = share.pieces
        views = self.augment(self.train_images, piece, epoch, self.precision.dtype)
        with self.precision.context():
            first, second = self.ddp(*views)
        loss = barlow_twins_loss(self._precise(first), self._precise(second), self.config.barlow.lmbda)
        # The loss of the global batch, whose gradient is the mean over ranks that DDP takes.
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        tally.add_loss(loss.detach() * share.size, share.size)
        return loss.detach()

    def _precise(self, z: Tensor) -> Tensor:
        return z.float() if z.dtype == torch.bfloat16 else z

    def evaluate(self, tally: Tally) -> dict[str, float | None]:
        self.ranks.broadcast(self.model.buffers())
        return {"train_loss": tally.scores(self.ranks).loss}


class Probing(Classification):
    """A linear classifier on the pretrained backbone: SGD with momentum, the rate falling as a cosine."""

    phase: ClassVar[str] = "linear"

    @classmethod
    def after(cls, pretraining: Pretraining) -> Probing:
        """The phase that follows; its backbone still has fresh weights."""
        config, data = pretraining.config, pretraining.data
        augment, cosine = augmentation(config.data, config.seed), ScheduleConfig(name="cosine")
        return cls.assemble(
            pretraining.ranks, config, data, augment, epochs=config.epochs, schedule=cosine, after=pretraining
        )

    @torch.no_grad()
    def take_backbone(self, pretraining: Pretraining) -> None:
        """Copy the pretrained weights and statistics."""
        source = pretraining.model.get_submodule("backbone").state_dict()
        self.model.get_submodule("backbone").load_state_dict(source)
        # As after any build: what this phase draws doesn't depend on what the one before it drew.
        torch.manual_seed((self.config.seed << 20) + self.ranks.rank + 1)
