"""What a checkpoint holds: its parts' types, and whether they agree with each other and with the run.

A file that torch can load may still hold another run's state, or one that somebody edited. What doesn't fit is told
before anything is put to use. Annotations are evaluated in this module, as in `tvlars_probe.traces.manifest_entries`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from torch import Tensor
from torch.optim import Optimizer

from tvlars_probe.optimizers.description import describe
from tvlars_probe.probes import state as recorder_state
from tvlars_probe.probes.state import RecorderState, SharpnessState
from tvlars_probe.runners.phases.modes import PHASES
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.manifest_entries import BestEntry
from tvlars_probe.traces.plain_types import fits, mismatches, shown

_SUMS = 4
"""Numbers that a rank's tally keeps of an epoch."""


class TallyState(TypedDict):
    """What the running epoch's batches scored: every rank's sums."""

    sums: list[list[float]]
    has_five: bool


class OptimizerState(TypedDict):
    """An optimizer's state, by the parameters' numbers."""

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class CheckpointState(TypedDict):
    """The whole state after ``step`` updates."""

    format: int
    step: int
    phase: str
    epochs: int
    batches: NotRequired[int]
    seconds: NotRequired[float]
    tally: NotRequired[TallyState | None]
    model: dict[str, Tensor]
    optimizer: OptimizerState
    scheduler: dict[str, Any]
    recorder: RecorderState
    rng: list[dict[str, Tensor]]
    best: BestEntry | None
    config: NotRequired[dict[str, Any]]
    manifest: NotRequired[str]


def faults(state: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a checkpoint, told from it alone."""
    lacking = sorted(CheckpointState.__required_keys__ - state.keys())
    if lacking:
        yield f"it lacks {', '.join(lacking)}"
        return
    wrong = mismatches(CheckpointState, state)
    wrong = wrong or [f"in its recorder's state {fault}" for fault in recorder_state.faults(state["recorder"])]
    wrong = wrong or [*_probe_faults(state["recorder"].get("probes", []))]
    if wrong:
        yield from wrong
        return
    yield from _disagreements(state)
    yield from _out_of_range(state)


def _probe_faults(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """``train`` has no probes but those of sharpness."""
    for probe in probes:
        if not fits(probe, SharpnessState):
            yield f"a probe's state is {shown(probe)}"


def _disagreements(state: Mapping[str, Any]) -> Iterator[str]:
    step, batches, recorder, tally = state["step"], state.get("batches", 0), state["recorder"], state.get("tally")
    if state["phase"] not in PHASES:
        yield f"its phase is {shown(state['phase'])}"
    if recorder["step"] != step or recorder["phase"] != state["phase"]:
        yield f"its recorder is in step {recorder['step']} of {shown(recorder['phase'])}"
    if "last_epoch" in recorder and recorder["last_epoch"] != (step - batches or None):
        yield f"its last epoch ended after {recorder['last_epoch']} updates, and {batches} batches ago"
    if {*recorder["rates"]} - {*state["model"]}:
        yield "it has rates of tensors that the model hasn't"
    if (tally is None) != (batches == 0):
        yield "it lacks what the running epoch's batches scored" if batches else "it has a score of no batches"
    if tally is not None and (len(tally["sums"]) != len(state["rng"]) or any(len(s) != _SUMS for s in tally["sums"])):
        yield "its score is of other ranks, or of other sums, than are kept"
    if not state["rng"] or not all("cpu" in generators for generators in state["rng"]):
        yield "it lacks a rank's random generator"


def _out_of_range(state: Mapping[str, Any]) -> Iterator[str]:
    recorder, tally, probes = state["recorder"], state.get("tally"), state["recorder"].get("probes", [])
    counts = {"step": state["step"], "epochs": state["epochs"], "batches": state.get("batches", 0)}
    yield from (f"its {name} is {shown(count)}" for name, count in counts.items() if not 0 <= count < 1 << 63)
    if recorder["samples"] is None:
        yield "its recorder doesn't know how many samples were seen"
    times = [probe.get(name, 0.0) for probe in probes for name in ("elapsed", "spent", "last")]
    numbers = {"seconds": [state.get("seconds", 0.0), *times]}
    numbers |= {"scores": [number for sums in tally["sums"] for number in sums] if tally else []}
    for name, values in numbers.items():
        for value in values:
            if isinstance(value, str) or not 0 <= value < math.inf:
                yield f"{shown(value)} stands among its {name}"


def misplaced(state: Mapping[str, Any], *, first_step: int, steps_per_epoch: int, epochs: int) -> Iterator[str]:
    """Whether the phase that a checkpoint is in can be in its place: ``step`` updates of the run, so many epochs."""
    step, done, batches = state["step"], state["epochs"], state.get("batches", 0)
    if done > epochs or batches > steps_per_epoch or step != first_step + done * steps_per_epoch + batches:
        yield (
            f"after {step} updates it can't be in epoch {done}, batch {batches} (the phase begins at {first_step}, "
            f"with {epochs} epochs of {steps_per_epoch} batches)"
        )


def misfits(state: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """What of a checkpoint isn't as the manifest says: the run, its place in it, and the shapes of the weights."""
    run_id = state["recorder"].get("run_id")
    if run_id is not None and run_id != manifest.run_id:
        yield f"it belongs to the run {shown(run_id)}, not {shown(manifest.run_id)}"
        return
    for phase in manifest.phases:
        first, length, epochs = (phase.get(name) for name in ("first_step", "steps_per_epoch", "epochs"))
        if phase["phase"] == state["phase"] and first is not None and length is not None and epochs is not None:
            yield from misplaced(state, first_step=first, steps_per_epoch=length, epochs=epochs)
    for entry in manifest.parameters.get(state["phase"], []):
        name, shape = entry["name"], entry.get("shape")
        there = [*state["model"][name].shape] if name in state["model"] else "missing"
        if shape is not None and there != [*shape]:
            yield f"it holds another model's weights: {name} is {there}, not {shape}"


def unlike_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> Iterator[str]:
    """What of an optimizer's saved state can't be that of ``optimizer``: groups, types, shapes."""
    groups, theirs = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group.get("params", ())) for group in theirs]:
        yield "its optimizer's parameter groups are others"
        return
    parameters = [p for group in groups for p in group["params"]]
    numbers = [number for group in theirs for number in group["params"]]
    kept = [saved["state"].get(number, {}) for number in numbers]
    if len({frozenset(entry) for entry, p in zip(kept, parameters, strict=True) if p.requires_grad}) > 1:
        yield "its optimizer keeps other things of some parameters than of others"
    remembers = any(group.keeps_state for group in describe(optimizer))
    if {*saved["state"]} - {*numbers} or (remembers and not saved["state"]):
        yield "its optimizer's state is of other parameters"
    for entry, p in zip(kept, parameters, strict=True):
        for name, value in entry.items():
            alike = isinstance(value, Tensor) and (value.numel() == 1 or value.shape == p.shape)
            if alike or (value is None and not remembers) or (name == "step" and fits(value, float)):
                continue
            there = f"the shape {[*value.shape]}" if isinstance(value, Tensor) else f"the value {shown(value)}"
            yield f"its optimizer's {name} of a parameter of shape {[*p.shape]} has {there}"


def unlike_options(mine: Mapping[str, Any], theirs: Mapping[str, Any], moving: Collection[str]) -> Iterator[str]:
    """Those of the options ``mine`` which are others in ``theirs``; of the ``moving`` ones, of another type."""
    for name in sorted(mine):
        if name not in theirs:
            yield f"it lacks {name}"
            continue
        same = _same_kind(mine[name], theirs[name])
        if not same or (name not in moving and mine[name] is not None and [mine[name]] != [theirs[name]]):
            yield f"its {name} is {shown(theirs[name])}, and the run's {shown(mine[name])}"


def _same_kind(mine: Any, other: Any) -> bool:
    if mine is None:
        return not isinstance(other, Tensor)
    if fits(mine, float) and not isinstance(mine, str):
        return fits(other, float) and not isinstance(other, str)
    if isinstance(mine, Sequence) and not isinstance(mine, str):
        same = isinstance(other, Sequence) and not isinstance(other, str) and len(mine) == len(other)
        return same and all(_same_kind(a, b) for a, b in zip(mine, other, strict=True))
    return isinstance(other, type(mine))
