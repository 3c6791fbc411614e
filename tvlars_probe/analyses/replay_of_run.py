"""The replay of a recorded run; settings that aren't given are those of its own parameter groups."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.analyses.rate_courses import share_of
from tvlars_probe.analyses.replay import COLUMNS, DIRECTION_COLUMNS, Replay, replay
from tvlars_probe.analyses.variants import Variant, takers
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.optimizers.group_entries import registered_name
from tvlars_probe.optimizers.registry import LAYERWISE, OPTIMIZERS
from tvlars_probe.optimizers.schedules import REFERENCE_BATCH_SIZE, Schedule, ScheduleConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid
    from tvlars_probe.analyses.source import Source

    Floats = NDArray[np.float64]


_BESIDE = 30
"""How many columns of the grid take as much memory as what a replay makes of it."""


def the_one(sources: Sequence[Source]) -> Source:
    """The run to replay.

    Raises:
        UserError: it isn't one run that was given.
    """
    if len(sources) != 1:
        raise UserError(f"replay takes one run, {len(sources)} were given: call it for each")
    return sources[0]


def replay_of(source: Source, *, optimizer: str | None = None, **given: Any) -> Replay:
    """Replay a run under the settings given. Each tensor keeps the other settings of its parameter group.

    Args:
        source: the run, and the phase of it.
        optimizer: one of `LAYERWISE`, for all tensors; by default each tensor's own. Tensors of an optimizer that isn't
            layer-wise then keep their recorded ratio. A run in which all tensors are such is replayed as lars.
        **given: fields of `Variant`, and ``schedule`` and ``warmup_epochs``, for all tensors. Also ``lr``, for the
            tensors that have the first group's learning rate: groups with a rate of their own keep it (as ``train``
            keeps ``--excluded-lr``).

    Raises:
        UserError: a setting is outside its range or has no effect, or the manifest doesn't tell what the schedule
            needs.
        TraceError: a column that is needed isn't in the trace, or is of another optimizer's direction.
    """
    if optimizer is not None and optimizer not in LAYERWISE:
        raise unknown("optimizer to replay", optimizer, LAYERWISE)
    known = {f.name for f in dataclasses.fields(Variant)}
    settings = {name: value for name, value in given.items() if name in known}
    rates = {name: value for name, value in given.items() if name not in known}
    lr = rates.get("lr")
    if lr is not None and not 0 < lr < np.inf:
        raise UserError(f"--lr {lr:g} is outside its range (allowed: above 0)")
    facts = source.facts
    _refuse_without_effect(settings, _optimizers(facts, optimizer))
    directions = {OPTIMIZERS[name].describe({}).scaling.direction for name in _optimizers(facts, optimizer)}
    columns = [*COLUMNS, *(DIRECTION_COLUMNS if "preconditioned" in directions else ())]
    grid = source.layers(columns, beside=_BESIDE)
    facts = source.facts  # which say by now whether steps were passed over
    groups = _groups(facts, grid.parameters)
    variants = _variants(facts, groups, optimizer, settings)
    return replay(grid, facts, variants, lr=_rates(grid, facts, groups, **rates))


def _optimizers(facts: RunFacts, optimizer: str | None) -> list[str]:
    """The optimizers to replay: the one asked for, else the layer-wise ones that trained the run, else lars."""
    if optimizer is not None:
        return [optimizer]
    own = [registered_name(group) for group in facts.groups]
    return [name for name in LAYERWISE if name in own] or ["lars"]


def _refuse_without_effect(settings: Mapping[str, Any], optimizers: Sequence[str]) -> None:
    """Refuse settings that none of the optimizers takes.

    Raises:
        UserError: there is such a setting.
    """
    for name in settings:
        if not {*takers(name)} & {*optimizers}:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect on {' and '.join(optimizers)}: leave it out, or replay "
                f"--optimizer {' or '.join(takers(name))}"
            )


def _groups(facts: RunFacts, parameters: Sequence[str]) -> list[Mapping[str, Any]]:
    """The manifest's entry of each tensor's group. Where it isn't told, it is the run's only group, if there is one."""
    only = facts.groups[0] if len(facts.groups) == 1 else {}
    return [group or only for group in facts.group_of(parameters)]


def _variants(
    facts: RunFacts, groups: Sequence[Mapping[str, Any]], optimizer: str | None, settings: Mapping[str, Any]
) -> list[Variant | None]:
    """The settings to replay, per tensor; None where the recorded ratio stands."""
    ours = _optimizers(facts, optimizer)
    # A run without any layer-wise optimizer is replayed as lars throughout: none of its tensors is kept.
    alone = optimizer is None and not any(registered_name(group) in LAYERWISE for group in facts.groups)
    variants: list[Variant | None] = []
    for group in groups:
        kept = optimizer is None and not alone and registered_name(group) not in ours
        variants.append(None if kept else Variant.of_group(group, optimizer).with_settings(settings))
    return variants


def _rates(
    grid: LayerGrid,
    facts: RunFacts,
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float | None = None,
    schedule: str | None = None,
    warmup_epochs: float | None = None,
) -> Floats | None:
    """Each tensor's rate in each step under another schedule, (T, P); None where the recorded rates are meant."""
    if lr is None and schedule is None and warmup_epochs is None:
        return None
    recorded = grid["lr"].astype(np.float64)
    main = np.array([bool(group) and group is facts.main_group for group in groups], bool)
    own_lr, shares = _own_rate(facts, recorded[:, main]), _shares(recorded, main)
    base = own_lr if lr is None else lr
    if base is None:
        raise UserError(f"the manifest of {facts.name} doesn't tell its learning rate: give --lr")
    # Learning rates are recorded in float32: equal ones may differ by rounding, some 1e-7.
    has_own, alone = ~np.isclose(shares, 1.0, rtol=1e-5), np.isnan(shares)
    keeps_schedule = schedule is None and warmup_epochs is None
    if alone.any() and not keeps_schedule:
        raise UserError(
            f"the rate of {grid.parameters[int(alone.argmax())]} in {facts.name} has a schedule of its own, which "
            "--schedule and --warmup-epochs can't replace: leave them out (--lr alone leaves that rate as it was)"
        )
    if keeps_schedule and facts.schedule is None:
        # The loop had a schedule that nobody knows, or none: its course is the record's.
        scaled = np.full_like(recorded, base) if not own_lr else recorded * (base / own_lr)
        return np.where(has_own, recorded, scaled)
    factors = _factors(facts, grid.steps - facts.first_step, schedule, warmup_epochs)
    if (has_own & ~alone).any() and own_lr is None:
        name = grid.parameters[int((has_own & ~alone).argmax())]
        raise UserError(f"the manifest of {facts.name} doesn't tell the rate of {name}, which has one of its own")
    own = shares * (np.nan if own_lr is None else own_lr)
    return np.where(alone, recorded, factors[:, None] * np.where(has_own, own, base))


def _own_rate(facts: RunFacts, main: Floats) -> float | None:
    """The first group's learning rate before the schedule; None where neither manifest nor trace tells it.

    Args:
        facts: what the manifest tells.
        main: the recorded rates of that group's tensors, (T, some). Their highest stands in where the manifest tells
            only what the rate was after the last step.
    """
    asked = facts.config.get("optimizer")
    if isinstance(asked, dict) and isinstance(asked.get("lr"), int | float):
        return facts.lr
    if facts.peak_lr is None:
        highest = np.fmax.reduce(main, axis=None, initial=np.nan)
        return facts.lr if np.isnan(highest) else float(highest)
    if facts.lr is None or facts.schedule != "lars-warm" or not facts.batch_size:
        return facts.lr
    # Where the configuration doesn't tell ``--lr``, facts.lr is the peak, which lars-warm has scaled already.
    return facts.lr * REFERENCE_BATCH_SIZE / facts.batch_size


def _shares(recorded: Floats, main: NDArray[np.bool_]) -> Floats:
    """Each tensor's learning rate over that of the first group's tensors, (P,), as `share_of` tells it.

    It is 1 for all tensors where the manifest doesn't tell the first group.
    """
    if not main.any():
        return np.ones(len(main))
    course = np.fmax.reduce(recorded[:, main], axis=1, initial=np.nan)
    return np.array(
        [1.0 if is_main else share_of(rates, course) for is_main, rates in zip(main, recorded.T, strict=True)]
    )


def _factors(facts: RunFacts, updates: NDArray[np.int64], schedule: str | None, warmup_epochs: float | None) -> Floats:
    """The schedule's factor on the learning rate of each update, (T,); a phase's updates are counted from 0."""
    own = facts.config.get("schedule")
    own = own if isinstance(own, dict) else {}  # somebody else's configuration may hold anything
    name = schedule or facts.schedule or "none"
    # The length of the run's warm-up belongs to its own schedule; `ScheduleConfig` refuses it with any but lars-warm.
    if warmup_epochs is None and name == own.get("name"):
        warmup_epochs = own.get("warmup_epochs")
    config = ScheduleConfig(name=name, warmup_epochs=warmup_epochs)
    if name == "none":
        return np.ones(len(updates))
    built = _build(facts, config)
    return np.array([built.factor(int(step)) for step in updates], np.float64)


def _build(facts: RunFacts, config: ScheduleConfig) -> Schedule:
    """The schedule over the length of the phase.

    Raises:
        UserError: the manifest doesn't tell that length or the batch size, or the warm-up is too long for it.
    """
    per_epoch, batch = facts.steps_per_epoch, facts.batch_size
    epochs = facts.epochs or (facts.total_steps // per_epoch if facts.total_steps and per_epoch else None)
    if not (per_epoch and batch and epochs):
        raise UserError(
            f"the manifest of {facts.name} doesn't tell epochs, steps per epoch and batch size, which the schedule "
            f"{config.name} needs: replay with --schedule none"
        )
    return config.build(epochs=epochs, steps_per_epoch=per_epoch, batch_size=batch)
