"""Learning-rate schedules: the rate of each step as a multiple of ``--lr``.

A user chooses a `ScheduleConfig`. With the length of a phase it becomes a `Schedule`, a pure function of the step,
which `torch.optim.lr_scheduler.LambdaLR` applies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from tvlars_probe.errors import UserError, unknown

ScheduleName = Literal["none", "cosine", "lars-warm"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

REFERENCE_BATCH_SIZE = 256
"""lars-warm multiplies the learning rate by batch size / 256."""

FINAL_SHARE = 0.001
"""lars-warm falls to this share of its peak rate."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The factor on the learning rate in every step of one phase.

    Attributes:
        name: one of `SCHEDULES`.
        total_steps: updates in the phase.
        warmup_steps: updates of linear warm-up at the start of the phase (lars-warm).
        scale: factor on the whole schedule (lars-warm: batch size / 256).
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    scale: float = 1.0

    def factor(self, step: float) -> float:
        """Learning rate in ``step`` (from 0) divided by ``lr``.

        none: 1. cosine: (1 + cos(π·step/total_steps)) / 2. lars-warm: scale·step/warmup_steps during the warm-up,
        then a cosine from scale to 0.001·scale over the rest.
        """
        if self.name == "none":
            return 1.0
        if self.name == "cosine":
            return _cosine(step, self.total_steps)
        if self.name != "lars-warm":
            raise unknown("schedule", self.name, SCHEDULES)
        if step < self.warmup_steps:
            return self.scale * step / self.warmup_steps
        # The cosine starts at 1 where the warm-up ends, so that the peak is reached exactly, also without warm-up.
        share = _cosine(step - self.warmup_steps, self.total_steps - self.warmup_steps)
        return self.scale * (share + FINAL_SHARE * (1.0 - share))

    @property
    def peak_factor(self) -> float:
        """The largest factor of any step: that of step ``warmup_steps``."""
        return self.scale


@dataclass(frozen=True, slots=True)
class BranchSchedule(Schedule):
    """A part of another run's schedule, read by samples: for a run that goes on from there with another batch size.

    In step j it has the factor of the other schedule's step ``first`` + j·``stride``, with the stride B'/B of a batch
    of B' samples where the other run had B: at equal numbers of samples both have one factor. That step needn't be
    whole.

    Attributes:
        whole: the other run's schedule.
        first: the other run's step at which this one begins.
        stride: steps of the other run, in samples, that one step stands for.
    """

    whole: Schedule = field(kw_only=True)
    first: int = field(kw_only=True)
    stride: float = field(kw_only=True)

    def factor(self, step: float) -> float:
        # Beyond the end a cosine would rise again. A run whose last batches reach over it has the last factor.
        return self.whole.factor(min(self.first + step * self.stride, self.whole.total_steps))

    @property
    def peak_factor(self) -> float:
        # The factor rises through the warm-up and then falls: it is highest at the ends, or beside the warm-up's end.
        turn = int((self.whole.warmup_steps - self.first) / self.stride)
        steps = {0, self.total_steps - 1, turn, turn + 1}
        return max(self.factor(step) for step in steps if 0 <= step < self.total_steps)


def _cosine(step: float, total_steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / total_steps))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A schedule as a user chooses it.

    Attributes:
        name: one of `SCHEDULES`.
        warmup_epochs: length of lars-warm's warm-up in epochs of the phase, fractions allowed; None is 20 epochs or a
            fifth of the phase, whichever is less.
        peak_lr: the highest rate that the schedule is to reach; None where the rate before the schedule is given
            instead (`tvlars_probe.optimizers.registry.OptimizerConfig.lr`).
    """

    name: str = "none"
    warmup_epochs: float | None = None
    peak_lr: float | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown("schedule", self.name, SCHEDULES)
        if self.peak_lr is not None and not 0 <= self.peak_lr < math.inf:
            raise UserError(f"--peak-lr {self.peak_lr:g} is outside its range (allowed: 0 or more)")
        if self.warmup_epochs is None:
            return
        if self.name != "lars-warm":
            raise UserError(f"--warmup-epochs has no effect with --schedule {self.name}: leave it out or use lars-warm")
        if not 0 <= self.warmup_epochs < math.inf:
            raise UserError(f"--warmup-epochs {self.warmup_epochs} is not a number of epochs (allowed: 0 or more)")

    def warmup_for(self, epochs: float) -> float:
        """Length of the warm-up in epochs, for a phase of ``epochs`` epochs."""
        return min(20.0, epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    def peak_factor(self, batch_size: int) -> float:
        """The highest rate over the rate before the schedule: batch size / 256 with lars-warm, else 1."""
        return batch_size / REFERENCE_BATCH_SIZE if self.name == "lars-warm" else 1.0

    def build(self, *, epochs: int, steps_per_epoch: int, batch_size: int) -> Schedule:
        """The schedule of a phase.

        Args:
            epochs: epochs in the phase.
            steps_per_epoch: updates per epoch.
            batch_size: samples of one update, over all ranks.

        Raises:
            UserError: the warm-up takes all steps of the phase.
        """
        total = epochs * steps_per_epoch
        if self.name != "lars-warm":
            return Schedule(self.name, total)
        warmup_epochs = self.warmup_for(epochs)
        warmup = round(warmup_epochs * steps_per_epoch)
        if warmup >= total:
            raise UserError(
                f"--warmup-epochs {warmup_epochs:g} leaves no step after the warm-up: it takes {warmup} of {total} "
                f"steps (use fewer than --epochs {epochs})"
            )
        return Schedule(self.name, total, warmup, self.peak_factor(batch_size))
