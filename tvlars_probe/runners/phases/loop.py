"""The training loop of a phase of a run, on one rank or under DDP: what classification and Barlow Twins share."""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from tvlars_probe.probes.record import record
from tvlars_probe.probes.sharpness import SharpnessProbe
from tvlars_probe.runners.checkpoints.saver import Position, Saver, restore
from tvlars_probe.runners.evaluation import Precision
from tvlars_probe.runners.phases import objectives
from tvlars_probe.runners.phases.probe_sample import ProbeSample
from tvlars_probe.runners.progress import reporter
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.augmentation import Augmentation
    from tvlars_probe.data.batches import BatchPlan, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.optimizers.schedules import Schedule, ScheduleConfig
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.config import TrainConfig
    from tvlars_probe.runners.evaluation import Tally
    from tvlars_probe.runners.planning import Job
    from tvlars_probe.runners.progress import Silent


@dataclass(kw_only=True)
class Training(ABC):
    """One rank's parts of a phase of a run. Subclasses say what an update is, and what is told of an epoch.

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

    phase: ClassVar[str]

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
    def assemble(
        cls,
        ranks: Ranks,
        config: TrainConfig,
        data: ImageData,
        augment: Augmentation,
        *,
        epochs: int,
        schedule: ScheduleConfig | None = None,
        after: Training | None = None,
    ) -> Self:
        """Make everything, the same on every rank.

        Args:
            ranks: this process among the others.
            config: what was asked for.
            data: the data set.
            augment: makes the training batches.
            epochs: passes over the data.
            schedule: of the rate; the configuration's by default.
            after: the phase before this one, whose images on the device are used.
        """
        precision = Precision(config.precision, ranks.device)
        plan = objectives.batch_plan(config, len(data.train), cls.phase, rank=ranks.rank, world_size=ranks.world_size)
        model = seeded_model(config, data, cls.phase, ranks, precision)
        optimizer = objectives.build_optimizer(config, model, cls.phase)
        rates = (schedule or config.schedule).build(
            epochs=epochs, steps_per_epoch=plan.steps_per_epoch, batch_size=plan.batch_size
        )
        first_step = after.schedule.total_steps if after else 0
        return cls(
            config=config,
            ranks=ranks,
            data=data,
            train_images=after.train_images if after else data.train.to(ranks.device),
            plan=plan,
            precision=precision,
            model=model,
            ddp=distribute(model, ranks),
            optimizer=optimizer,
            schedule=rates,
            scheduler=LambdaLR(optimizer, rates.factor),
            augment=augment,
            epochs=epochs,
            saver=Saver(config.recording, phase_start=first_step),
            first_step=first_step,
        )

    @abstractmethod
    def tally(self) -> Tally:
        """Counts what an epoch's batches score."""

    @abstractmethod
    def update(self, share: Share, epoch: int, tally: Tally) -> Tensor:
        """One update by this rank's share of a batch; returns the share's mean loss."""

    @abstractmethod
    def evaluate(self, tally: Tally) -> dict[str, float | None]:
        """The epoch's row."""

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
