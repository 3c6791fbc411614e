"""The training loop, the same for every phase of a run, on one rank or under DDP."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.optim.lr_scheduler import LambdaLR

from tvlars_probe.runners.checkpoints import contents, restoring
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.saver import Saver
from tvlars_probe.runners.evaluation import Precision
from tvlars_probe.runners.phases.phase import FollowingPhase
from tvlars_probe.runners.phases.replica import Replica, distribute, seed_rank
from tvlars_probe.runners.progress import reporter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.batches import BatchPlan, Share
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.optimizers.schedules import Schedule
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.evaluation import Tally
    from tvlars_probe.runners.phases.phase import Phase
    from tvlars_probe.runners.progress import Silent


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a phase has come.

    Attributes:
        epoch: index of the running epoch, from 0.
        batches: batches of this epoch that are done; the sampler goes on behind them.
        seconds: time that this epoch has taken so far.
        tally: what these batches scored, as `Tally.state_dict` gives it; None where there are none.
    """

    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0
    tally: Mapping[str, Any] | None = None


@dataclass(kw_only=True, eq=False)
class Training:
    """One rank's training of a phase: the loop, and everything that it needs.

    Attributes:
        phase: what is trained, and how it is scored.
        data: data set, on the host.
        plan: how epochs are cut into batches.
        replica: this rank's copy of the model.
        optimizer: the optimizer of the model.
        schedule: learning rate of each step, as a multiple of the base rate.
        scheduler: applies the schedule to the optimizer.
        saver: saves checkpoints of the phase.
        first_step: updates of the run before the phase.
        position: where the phase begins, or goes on.
    """

    phase: Phase
    data: ImageData
    plan: BatchPlan
    replica: Replica
    optimizer: Optimizer
    schedule: Schedule
    scheduler: LambdaLR
    saver: Saver
    first_step: int = 0
    position: Position = field(default_factory=Position)

    @classmethod
    def build(cls, phase: Phase, ranks: Ranks, data: ImageData, images: TensorImages, *, first_step: int = 0) -> Self:
        """Build model, optimizer and schedule of a phase, the same on every rank.

        Args:
            phase: the phase.
            ranks: this process among the others.
            data: the data set.
            images: its training part, on the device.
            first_step: updates of the run before the phase.
        """
        plan = phase.plan(len(data.train), rank=ranks.rank, world_size=ranks.world_size)
        replica = _replica(phase, ranks, data, images)
        optimizer = phase.build_optimizer(replica.model)
        schedule = phase.build_schedule(plan)
        return cls(
            phase=phase,
            data=data,
            plan=plan,
            replica=replica,
            optimizer=optimizer,
            schedule=schedule,
            scheduler=LambdaLR(optimizer, schedule.factor),
            saver=Saver(phase.config.recording, phase_start=first_step),
            first_step=first_step,
        )

    @property
    def ranks(self) -> Ranks:
        """This process among the others."""
        return self.replica.ranks

    @property
    def model(self) -> nn.Module:
        """The model itself, not the DDP wrapper."""
        return self.replica.model

    def follow(self, before: Training) -> None:
        """Take over what the training ``before``, of the previous phase, has learned."""
        assert isinstance(self.phase, FollowingPhase)  # only the first phase of a mode may be another
        self.phase.take_over(self.model, before.model)
        # All phases are built before the first one trains. Seeded again, this one draws the same random numbers whether
        # the one before has just trained in this process or was restored from a checkpoint.
        seed_rank(self.phase.config.seed, self.ranks)

    def state_dict(self, position: Position) -> dict[str, Any]:
        """The state at ``position``, for a checkpoint. Every rank calls it."""
        return {
            "phase": self.phase.name,
            "epochs": position.epoch,
            "batches": position.batches,
            "seconds": position.seconds,
            "tally": position.tally,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": restoring.rng_state(self.ranks),
            "config": self.phase.config.as_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Go on from the checkpoint at ``path``.

        Args:
            state: what the checkpoint holds.
            path: its file, for messages.

        Raises:
            RunDirectoryError: the state is another model's or optimizer's, or it belongs elsewhere in the run.
        """
        phase, plan, made = self.phase, self.plan, state["step"] - self.first_step
        if state["phase"] != phase.name:
            where = f"it is in the phase {state['phase']}, the run in {phase.name}"
            checkpoints.refuse_for_this_run(path, [where])
        place = {"first_step": self.first_step, "steps_per_epoch": plan.steps_per_epoch, "epochs": phase.epochs}
        checkpoints.refuse(path, contents.misplaced(state, **place))
        restoring.restore_model(self.model, state, path)
        restoring.restore_optimizer(self.optimizer, state, path)
        # After the optimizer, whose restored learning rates are compared with the schedule.
        before = phase.updates_before
        restoring.restore_schedule(self.scheduler, self.schedule, state, made, path, before=before)
        restoring.restore_rng(state["rng"], self.ranks, path)
        self.saver.best.entry = state["best"]
        self.position = Position(
            epoch=state["epochs"],
            batches=state.get("batches", 0),
            seconds=state.get("seconds", 0.0),
            tally=state.get("tally"),
        )

    def describe(self) -> dict[str, Any]:
        """What the manifest says of this phase."""
        return {
            "phase": self.phase.name,
            "first_step": self.first_step,
            "epochs": self.phase.epochs,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "batch_size": self.plan.batch_size,
            "schedule": self.schedule.name,
            "peak_lr": self.peak_lr,
        }

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of the phase's first parameter group."""
        # A peak that was asked for is told as it was: divided and multiplied by the batch's factor it may round, and
        # runs of one peak would have two.
        asked = self.phase.schedule.peak_lr
        return float(self.scheduler.base_lrs[0]) * self.schedule.peak_factor if asked is None else asked

    def reporter(self, *, label: str | None = None, quiet: bool = False, heading: str = "") -> Silent:
        """What shows how far the phase is.

        Args:
            label: what each epoch's line begins with.
            quiet: whether to show no progress but what ``heading`` asks for.
            heading: as for `tvlars_probe.runners.progress.reporter`.
        """
        return reporter(
            speaks=self.ranks.is_first and (bool(heading) or not quiet),
            heading=heading,
            total_steps=self.schedule.total_steps,
            epochs=self.phase.epochs,
            first_step=self.position.epoch * self.plan.steps_per_epoch + self.position.batches,
            label=label,
        )

    def run(self, recorder: Recorder, progress: Silent) -> None:
        """Train the phase's epochs from `position` on, until the end, a loss that isn't finite, or a stop.

        Args:
            recorder: the run's recorder.
            progress: shows how far the phase is.
        """
        with progress:
            for epoch in range(self.position.epoch, self.phase.epochs):
                self.epoch(epoch, recorder, progress)
                if recorder.diverged or recorder.interrupted:
                    break
                self.position = Position(epoch=epoch + 1)

    def epoch(self, epoch: int, recorder: Recorder, progress: Silent) -> None:
        """Train an epoch from `position` on, evaluate, and checkpoint where it is time.

        Returns early after a loss that isn't finite, without a checkpoint, and when interrupted, with one.
        """
        # The seconds of a continued epoch include those before the interruption.
        started, tally = time.perf_counter() - self.position.seconds, self.phase.tally(self.ranks.device)
        if self.position.tally is not None:
            tally.load_state_dict(self.position.tally, self.ranks)
        self.replica.ddp.train()
        first = self.position.batches
        for batches, share in enumerate(self.plan.epoch(epoch, first), start=first + 1):
            lr = self.optimizer.param_groups[0]["lr"]  # before the scheduler moves it on
            self.tell_pieces(share, recorder)
            loss = self.update(share, share.epoch, tally)
            # Wishes come before log(), in which the ranks agree on what to do after this step.
            self.saver.wish(recorder)
            recorder.log(loss=loss, samples=share.size, epoch=epoch)
            if recorder.diverged:
                return
            step = recorder.step - 1 - self.first_step
            progress.step(epoch=epoch, step=step, samples=share.batch_size, lr=lr, loss=loss, tally=tally)
            recorder.interrupted = recorder.stop_agreed
            # After an epoch's last batch end_epoch saves, once it has evaluated. An interrupted run saves here all the
            # same: continued, it finds no batch left and goes on with the evaluation.
            if recorder.interrupted or (batches < self.plan.steps_per_epoch and self.saver.within_epoch(recorder)):
                seconds = time.perf_counter() - started
                with recorder.untimed():
                    counted = tally.state_dict(self.ranks)
                    here = Position(epoch=epoch, batches=batches, seconds=seconds, tally=counted)
                    self.saver.save(self.state_dict(here), recorder)
            if recorder.interrupted:
                return
        with recorder.untimed():
            self.end_epoch(epoch, tally, started, recorder, progress)

    def tell_pieces(self, share: Share, recorder: Recorder) -> None:
        """Tell of the pieces of this rank's share of a batch: the loss is a mean over all samples of the batch."""
        # A rank without samples joins the others with a gradient of zero, in one pass.
        for size in [len(piece) for piece in share.pieces] or [0]:
            recorder.note_piece(samples=size, weight=size)

    def update(self, share: Share, epoch: int, tally: Tally) -> Tensor:
        """Make one update from this rank's share of a batch of the pass ``epoch``, and return the share's mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.phase.backward(self.replica, share, epoch, tally)
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def end_epoch(self, epoch: int, tally: Tally, started: float, recorder: Recorder, progress: Silent) -> None:
        """Evaluate, and checkpoint if it is time or the run is to stop. Every rank calls it.

        Args:
            epoch: index of the epoch, from 0.
            tally: what its batches scored.
            started: when it began, by `time.perf_counter`.
            recorder: the run's recorder.
            progress: what shows how far the run is.
        """
        # BatchNorm's statistics on a rank are of that rank's samples: the first rank's are taken for all.
        self.ranks.broadcast(self.model.buffers())
        figures = self.phase.evaluate(self.replica, self.data, tally)
        figures["seconds"] = time.perf_counter() - started
        recorder.log_epoch(epoch=epoch, **figures)
        progress.epoch(epoch=epoch, figures=figures)
        # In a phase's last epoch there is nothing to stop: the run ends anyway, or the next phase stops after a step.
        recorder.interrupted = epoch + 1 < self.phase.epochs and recorder.agree_to_stop()
        if recorder.interrupted or recorder.checkpoint_agreed or self.saver.after_epoch(epoch, self.phase.epochs):
            # Only epochs that are checkpointed compete: of the best one there must be a file. Without samples held out
            # test accuracy decides; pretraining has no accuracy.
            metric = "val_acc1" if self.data.val is not None else "test_acc1"
            self.saver.best.compare(recorder.step, metric, figures.get(metric))
            self.saver.save(self.state_dict(Position(epoch=epoch + 1)), recorder)


def _replica(phase: Phase, ranks: Ranks, data: ImageData, images: TensorImages) -> Replica:
    """This rank's copy of the model, with the same weights on every rank. Later draws differ by rank."""
    precision = Precision(phase.config.precision, ranks.device)
    torch.manual_seed(phase.config.seed)
    model = phase.build_model(data).to(ranks.device, precision.dtype)
    seed_rank(phase.config.seed, ranks)
    return Replica(
        ranks=ranks,
        precision=precision,
        images=images,
        augment=phase.augmentation(),
        model=model,
        ddp=distribute(model, ranks),
    )
