"""Where a branch goes on from: the checkpoint of another run, and how its data and schedule are continued."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.optimizers.batch_change import LR_RULES
from tvlars_probe.optimizers.schedules import BranchSchedule

if TYPE_CHECKING:
    from tvlars_probe.data.batches import BatchPlan
    from tvlars_probe.data.stretches import StretchPlan
    from tvlars_probe.optimizers.schedules import Schedule, ScheduleConfig

ORDERS = ("own", "parent")


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """A branch: a run that goes on from a checkpoint of another one, its parent, with a batch size of its own.

    Attributes:
        parent: path of the parent's run directory, as seen from the branch's own.
        run_id: the parent's.
        step: updates that the parent had made.
        batch_size: the parent's.
        epochs: the parent's, as planned: its schedule is for so many.
        steps_per_epoch: the parent's.
        samples: samples that the branch trains on.
        lr_rule: one of `tvlars_probe.optimizers.batch_change.LR_RULES`.
        order: "own" draws the order of the samples anew, by the branch's own seed; "parent" goes on in the parent's.
        passes: epochs that the parent had completed.
        batches: batches of the epoch after them that it had trained on.

    Raises:
        UserError: a setting is outside its range.
    """

    parent: str
    run_id: str
    step: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    samples: int
    lr_rule: str = "sqrt"
    order: str = "own"
    passes: int = 0
    batches: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "steps_per_epoch", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few (allowed: 1 or more)")
        for name in ("step", "passes", "batches"):
            if getattr(self, name) < 0:
                raise UserError(f"a branch's {name} can't be {getattr(self, name)} (allowed: 0 or more)")
        if self.lr_rule not in LR_RULES:
            raise unknown("--lr-rule", self.lr_rule, LR_RULES)
        if self.order not in ORDERS:
            raise unknown("a branch's order", self.order, ORDERS)

    def numbers(self) -> dict[str, Any]:
        """The settings that change the branch's numbers: all but the path."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "parent"}

    def plan(self, plan: BatchPlan, *, epochs: int) -> StretchPlan:
        """The batches of the branch, in ``epochs`` stretches.

        Args:
            plan: how batches are cut and shared.
            epochs: number of stretches.
        """
        from tvlars_probe.data.stretches import StretchPlan  # which needs numpy, and `--help` shouldn't

        own = self.order == "own"
        return StretchPlan(
            **{f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)},
            stretch=self.samples // epochs,
            # The parent's unfinished pass may have drawn augmentations with this seed already.
            first_pass=self.passes + 1 if own else self.passes,
            skipped=0 if own else self.batches * self.batch_size,
            stream=self.step if own else None,
        )

    def build_schedule(self, schedule: ScheduleConfig, plan: BatchPlan) -> Schedule:
        """The part of the parent's schedule from the checkpoint on, by samples.

        Args:
            schedule: the parent's.
            plan: the branch's batches.
        """
        whole = schedule.build(epochs=self.epochs, steps_per_epoch=self.steps_per_epoch, batch_size=self.batch_size)
        return BranchSchedule(
            schedule.name,
            self.samples // plan.length * plan.steps_per_epoch,
            whole=whole,
            first=self.step,
            stride=plan.batch_size / self.batch_size,
        )
