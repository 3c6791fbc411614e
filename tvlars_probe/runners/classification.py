"""The training loop of a phase, on one rank or under DDP; as it stands here, that of classification."""

from __future__ import annotations

import contextlib
import inspect
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from tvlars_probe.data.augmentation import Augmentation, augmentation
from tvlars_probe.probes.recorder import record
from tvlars_probe.probes.sharpness import SharpnessProbe
from tvlars_probe.runners import checkpoints, objectives
from tvlars_probe.runners.evaluation import Precision, Tally, evaluate, loss_sum
from tvlars_probe.runners.progress import reporter
from tvlars_probe.runners.samples import ProbeSample
from tvlars_probe.runners.saving import Position, Saver, note_other_ranks, restore
from tvlars_probe.runners.stopping import StopSignals
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.data.batches import BatchPlan, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.optimizers.schedules import Schedule
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.config import TrainConfig
    from tvlars_probe.runners.jobs import Job
    from tvlars_probe.runners.progress import Silent
    from tvlars_probe.runners.ranks import Ranks


def train_classifier(ranks: Ranks, job: Job) -> int | None:
    """Make the run that ``job`` describes; every rank calls it.

    Returns:
        the signal that ended it early, if one did.
    """
    training = Training.build(ranks, job.config)
    state = checkpoints.load(job.checkpoint, ranks.device) if job.checkpoint else None
    if state:
        training.restore(state, job)
    recorder = training.recorder(job, state, training.manifest(job), training.schedule.total_steps)
    with recorder, StopSignals(recorder) as stop:
        note_other_ranks(recorder, state, ranks)
        training.run(job, recorder)
    return stop.number if recorder.interrupted else None


@dataclass(kw_only=True)
class Training:
    """One rank's parts of a phase of a run; a classifier's unless a subclass says otherwise.

    Attributes:
        config: what was asked for.
        ranks: this process among the others.
        data: data set, on the host.
        train_images: its training part, on the device.
        plan: how epochs are cut into batches.
        precision: how the model computes.
        model: the model itself.
        ddp: the model as it is called in training.
        optimizer: its optimizer.
        schedule: learning rate of each step.
        scheduler: applies the schedule.
        augment: makes the training batches.
        epochs: passes over the data in this phase.
        saver: its checkpoints.
        first_step: updates of the run before it.
        position: where it begins, or goes on.
    """

    phase: ClassVar[str] = "train"

    config: TrainConfig
    ranks: Ranks
    data: ImageData
    train_images: TensorImages
    plan: BatchPlan
    precision: Precision
    model: nn.Module
    ddp: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scheduler: LambdaLR
    augment: Augmentation
    epochs: int
    saver: Saver
    first_step: int = 0
    position: Position = field(default_factory=Position)

    @classmethod
    def build(cls, ranks: Ranks, config: TrainConfig) -> Training:
        """Load the data and make everything, the same on every rank."""
        data = config.data.load(config.place.workers)
        precision = Precision(config.precision, ranks.device)
        plan = objectives.batch_plan(config, len(data.train), cls.phase, rank=ranks.rank, world_size=ranks.world_size)
        model = seeded_model(config, data, cls.phase, ranks, precision)
        optimizer = objectives.build_optimizer(config, model, cls.phase)
        schedule = config.schedule.build(
            epochs=config.epochs, steps_per_epoch=plan.steps_per_epoch, batch_size=config.batch_size
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
            augment=augmentation(config.data, config.seed),
            epochs=config.epochs,
            saver=Saver(config.recording),
        )

    def recorder(self, job: Job, state: Mapping[str, Any] | None, manifest: Manifest, total_steps: int) -> Recorder:
        """The run's recorder, which begins, or goes on, with this phase."""
        recording = job.config.recording
        recorder = record(
            self.model,
            self.optimizer,
            job.path,
            config=job.config.as_dict(),
            total_steps=total_steps,
            detail=recording.detail,  # type: ignore[arg-type]
            every=recording.every,
            probes=self.probes(),
            on_probe_error=recording.on_probe_error,  # type: ignore[arg-type]
            manifest=manifest,
            resume=state["recorder"] if state else job.blank_state,
        )
        recorder.phase = self.phase
        return recorder

    def restore(self, state: dict[str, Any], job: Job) -> None:
        """Go on from a checkpoint."""
        assert job.checkpoint is not None
        self.position = restore(self, state, job.checkpoint)

    def run(self, job: Job, recorder: Recorder) -> None:
        """Train the phase's epochs from `position` on, until the end, a loss that isn't finite, or a signal."""
        done = self.position.epoch * self.plan.steps_per_epoch + self.position.batches
        progress = reporter(
            speaks=self.ranks.is_first and not job.quiet,
            total_steps=self.schedule.total_steps,
            epochs=self.epochs,
            first_step=done,
        )
        with progress:
            for epoch in range(self.position.epoch, self.epochs):
                self.epoch(epoch, recorder, progress)
                if recorder.diverged or recorder.interrupted:
                    break
                self.position = Position(epoch=epoch + 1)

    def manifest(self, job: Job) -> Manifest:
        """What is known of the run before it begins."""
        config, share = self.config, -(-self.config.batch_size // self.ranks.world_size)
        return Manifest(
            run_id=job.run_id,
            config_id=job.config_id,
            command=list(job.command),
            seed=config.seed,
            data=self.data.describe(),
            model={"name": config.model.name, "parameters": sum(p.numel() for p in self.model.parameters())},
            batch_size=config.batch_size,
            micro_batches=self.plan.micro_batches,
            world_size=self.ranks.world_size,
            bn_batch_size=config.batch_size if config.joins_ranks else -(-share // self.plan.micro_batches),
            steps_per_epoch=self.plan.steps_per_epoch,
            peak_lr=config.optimizer.peak * self.schedule.peak_factor,
            phases=[self.describe()],
        )

    def describe(self) -> dict[str, Any]:
        """This phase as it stands in the manifest."""
        return {
            "phase": self.phase,
            "first_step": self.first_step,
            "epochs": self.epochs,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "batch_size": self.plan.batch_size,
            "schedule": self.schedule.name,
            "peak_lr": self.scheduler.base_lrs[0] * self.schedule.peak_factor,
        }

    def probes(self) -> list[SharpnessProbe]:
        """What is measured before updates."""
        asked = self.config.sharpness
        if asked.every is None:
            return []
        sample = ProbeSample.draw(self.data.train, min(asked.samples, len(self.data.train)))
        bn_mode = "eval" if self.phase == "linear" and self.config.barlow.lr_backbone == 0 else asked.bn_mode
        whole = bn_mode == "train" or not objectives.is_sum_over_samples(self.phase)
        make = partial(objectives.probe_batch, self.config, self.phase)
        probe = SharpnessProbe(
            self.model,
            None,
            sample.batches(self.ranks, self.precision.dtype, whole=whole, make=make),
            compute=objectives.batch_loss(self.config, self.phase),
            every=asked.every,
            operators=asked.operators,
            bn_mode=bn_mode,
            budget=asked.share,
            tol=asked.tol,
            sample_id=sample.sample_id,
        )
        return [probe]

    def epoch(self, epoch: int, recorder: Recorder, progress: Silent) -> None:
        """Train an epoch from `position` on, evaluate and checkpoint.

        Returns early after a loss that is not finite, or, interrupted, with a checkpoint.
        """
        started, tally = time.perf_counter() - self.position.seconds, self.tally()
        if self.position.tally is not None:
            tally.load_state_dict(self.position.tally, self.ranks)
        self.ddp.train()
        first = self.position.batches
        for batches, share in enumerate(self.plan.epoch(epoch, first), start=first + 1):
            lr = self.optimizer.param_groups[0]["lr"]
            loss = self.update(share, epoch, tally)
            self.saver.wish(recorder)
            recorder.log(loss=loss, samples=share.size, epoch=epoch)
            if recorder.diverged:
                return
            step = recorder.step - 1 - self.first_step
            progress.step(epoch=epoch, step=step, samples=share.batch_size, lr=lr, loss=loss, tally=tally)
            recorder.interrupted = recorder.stop_agreed
            if recorder.interrupted or (batches < self.plan.steps_per_epoch and self.saver.within_epoch(recorder)):
                seconds = time.perf_counter() - started
                with recorder.untimed():
                    counted = tally.state_dict(self.ranks)
                    here = Position(epoch=epoch, batches=batches, seconds=seconds, tally=counted)
                    self.saver.save(self, here, recorder)
            if recorder.interrupted:
                return
        with recorder.untimed():
            self.end_epoch(epoch, tally, started, recorder, progress)

    def end_epoch(self, epoch: int, tally: Tally, started: float, recorder: Recorder, progress: Silent) -> None:
        """Evaluate, and checkpoint where it is time or the run is to stop."""
        figures = self.evaluate(tally)
        figures["seconds"] = time.perf_counter() - started
        recorder.log_epoch(epoch=epoch, **figures)
        progress.epoch(epoch=epoch, line=_line(self.phase, figures))
        recorder.interrupted = epoch + 1 < self.epochs and recorder.agree_to_stop()
        if recorder.interrupted or recorder.checkpoint_agreed or self.saver.after_epoch(epoch, self.epochs):
            metric = "val_acc1" if self.data.val is not None else "test_acc1"
            self.saver.best.compare(recorder.step, metric, figures.get(metric))
            self.saver.save(self, Position(epoch=epoch + 1), recorder)

    def tally(self) -> Tally:
        """Counts what an epoch's batches score."""
        return Tally(self.ranks.device)

    def update(self, share: Share, epoch: int, tally: Tally) -> Tensor:
        """One update by this rank's share of a batch; returns the share's mean loss."""
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


def seeded_model(config: TrainConfig, data: ImageData, phase: str, ranks: Ranks, precision: Precision) -> nn.Module:
    """A phase's model on its device, the same on every rank; what is drawn afterwards differs from rank to rank."""
    torch.manual_seed(config.seed)
    model = objectives.build_model(config, data, phase).to(ranks.device, precision.dtype)
    torch.manual_seed((config.seed << 20) + ranks.rank + 1)
    return model


def distribute(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model as it is called in training: under DDP where there are several ranks."""
    if ranks.world_size == 1:
        return model
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    # Buffers are broadcast where they are read (evaluation, probes, checkpoints), not in every forward pass. torch has
    # renamed the switch.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    switch: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True, **switch)


def _line(phase: str, figures: dict[str, float | None]) -> str:
    """An epoch in one line."""
    parts = [] if phase == "train" else [phase]
    for name in ("train", "val", "test"):
        loss, accuracy = figures.get(f"{name}_loss"), figures.get(f"{name}_acc1")
        if loss is not None:
            parts.append(f"{name} loss {loss:.4f}" + ("" if accuracy is None else f"  acc {accuracy:.2f} %"))
    parts.append(f"{figures['seconds']:.1f} s")
    return "   ".join(parts)
