"""Barlow Twins and then its linear probe: two phases of one run and one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch.optim.lr_scheduler import LambdaLR

from tvlars_probe.data.augmentation import augmentation
from tvlars_probe.data.views import TwinViews
from tvlars_probe.models.barlow_twins import barlow_twins_loss
from tvlars_probe.optimizers.schedules import Schedule
from tvlars_probe.runners import checkpoints
from tvlars_probe.runners.classification import Training, distribute, seeded_model
from tvlars_probe.runners.evaluation import Precision, Tally
from tvlars_probe.runners.objectives import batch_plan, build_optimizer
from tvlars_probe.runners.saving import Saver, note_other_ranks
from tvlars_probe.runners.stopping import StopSignals

if TYPE_CHECKING:
    from torch import Tensor

    from tvlars_probe.data.batches import Share
    from tvlars_probe.runners.config import TrainConfig
    from tvlars_probe.runners.jobs import Job
    from tvlars_probe.runners.ranks import Ranks


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
    with recorder, StopSignals(recorder) as stop:
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
        precision = Precision(config.precision, ranks.device)
        plan = batch_plan(config, len(data.train), cls.phase, rank=ranks.rank, world_size=ranks.world_size)
        model = seeded_model(config, data, cls.phase, ranks, precision)
        optimizer = build_optimizer(config, model, cls.phase)
        schedule = config.schedule.build(
            epochs=config.barlow.epochs, steps_per_epoch=plan.steps_per_epoch, batch_size=config.batch_size
        )
        return cls(
            config=config,
            ranks=ranks,
            data=data,
            train_images=data.train.to(ranks.device),
            plan=plan,
            precision=precision,
            model=model,
            ddp=distribute(model, ranks),
            optimizer=optimizer,
            schedule=schedule,
            scheduler=LambdaLR(optimizer, schedule.factor),
            augment=TwinViews(seed=config.seed, flips=config.data.flips),
            epochs=config.barlow.epochs,
            saver=Saver(config.recording),
        )

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


class Probing(Training):
    """A linear classifier on the pretrained backbone: SGD with momentum, the rate falling as a cosine."""

    phase: ClassVar[str] = "linear"

    @classmethod
    def after(cls, pretraining: Pretraining) -> Probing:
        """The phase that follows; its backbone still has fresh weights."""
        config, ranks, data = pretraining.config, pretraining.ranks, pretraining.data
        plan = batch_plan(config, len(data.train), cls.phase, rank=ranks.rank, world_size=ranks.world_size)
        model = seeded_model(config, data, cls.phase, ranks, pretraining.precision)
        optimizer = build_optimizer(config, model, cls.phase)
        schedule = Schedule("cosine", config.epochs * plan.steps_per_epoch)
        return cls(
            config=config,
            ranks=ranks,
            data=data,
            train_images=pretraining.train_images,
            plan=plan,
            precision=pretraining.precision,
            model=model,
            ddp=distribute(model, ranks),
            optimizer=optimizer,
            schedule=schedule,
            scheduler=LambdaLR(optimizer, schedule.factor),
            augment=augmentation(config.data, config.seed),
            epochs=config.epochs,
            first_step=pretraining.schedule.total_steps,
            saver=Saver(config.recording, phase_start=pretraining.schedule.total_steps),
        )

    @torch.no_grad()
    def take_backbone(self, pretraining: Pretraining) -> None:
        """Copy the pretrained weights and statistics."""
        source = pretraining.model.get_submodule("backbone").state_dict()
        self.model.get_submodule("backbone").load_state_dict(source)
        # As after any build: what this phase draws doesn't depend on what the one before it drew.
        torch.manual_seed((self.config.seed << 20) + self.ranks.rank + 1)
