"""The replay of a recorded run, its own settings filled in where none are given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.loading import facts_of, grid_of
from tvlars_probe.analyses.replay import COLUMNS, LAMB_COLUMNS, Replay, replay
from tvlars_probe.analyses.variants import Variant
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.schedules import Schedule, ScheduleConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.traces.reader import Run


def replay_of(run: Run, *, phase: str | None = None, optimizer: str | None = None, **given: Any) -> Replay:
    """Replay a run under the settings given.

    Args:
        run: which.
        phase: of the run.
        optimizer: lars, tvlars or lamb; by default the run's own, or lars.
        **given: fields of `Variant`, and ``lr``, ``schedule``, ``warmup_epochs``.

    Raises:
        UserError: a setting is outside its range, or the manifest doesn't tell what the schedule needs.
        TraceError: a column that is needed isn't in the trace.
    """
    facts = facts_of(run, phase)
    known = {f.name for f in dataclasses.fields(Variant)}
    base = Variant.of_group(facts.groups[0] if facts.groups else {}, optimizer)
    variant = dataclasses.replace(base, **{name: value for name, value in given.items() if name in known})
    rate = _rate(facts, **{name: value for name, value in given.items() if name not in known})
    columns = [*COLUMNS, *(LAMB_COLUMNS if variant.optimizer == "lamb" else ())]
    return replay(grid_of(run, facts, columns), facts, variant, rate=rate)


def _rate(
    facts: RunFacts, *, lr: float | None = None, schedule: str | None = None, warmup_epochs: float | None = None
) -> Callable[[int], float] | None:
    """The rate of each update under another schedule, None where the recorded rates are meant."""
    if lr is None and schedule is None and warmup_epochs is None:
        return None
    base = facts.lr if lr is None else lr
    own = facts.config.get("schedule") or {}
    name = schedule or facts.schedule or "none"
    if warmup_epochs is None and name == own.get("name"):
        warmup_epochs = own.get("warmup_epochs")
    config = ScheduleConfig(name=name, warmup_epochs=warmup_epochs)
    if base is None:
        raise UserError(f"the manifest of {facts.name} doesn't tell its learning rate: give --lr")
    if name == "none":
        return lambda _: base
    built = _build(facts, config)
    return lambda step: base * built.factor(step)


def _build(facts: RunFacts, config: ScheduleConfig) -> Schedule:
    per_epoch, batch = facts.steps_per_epoch, facts.batch_size
    epochs = facts.epochs or (facts.total_steps // per_epoch if facts.total_steps and per_epoch else None)
    if not (per_epoch and batch and epochs):
        raise UserError(
            f"the manifest of {facts.name} doesn't tell epochs, steps per epoch and batch size, which the schedule "
            f"{config.name} needs: replay with --schedule none"
        )
    return config.build(epochs=epochs, steps_per_epoch=per_epoch, batch_size=batch)
