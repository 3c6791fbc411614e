"""What a checkpoint holds: the types of its entries, and whether they agree with each other and with the run.

A file that torch can load may still hold another run's state, or an edited one. The functions below yield one text for
each disagreement, before any of the state is used. Annotations are evaluated in this module: as strings they would hide
from `TypedDict` what is not required.
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
"""Sums that a rank's tally keeps of an epoch: loss, top-1 hits, top-5 hits, samples."""


class TallyState(TypedDict):
    """The scores of the running epoch so far, as `tvlars_probe.runners.evaluation.Tally.state_dict` gives them.

    Attributes:
        sums: a list of four sums per rank.
        has_five: whether there are five classes or more, so that top-5 accuracy means something.
    """

    sums: list[list[float]]
    has_five: bool


class OptimizerState(TypedDict):
    """What ``Optimizer.state_dict()`` gives.

    Attributes:
        state: by the number of a parameter, what the optimizer keeps of it.
        param_groups: options of each parameter group, with the numbers of its parameters.
    """

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class CheckpointState(TypedDict):
    """The whole state of a run after ``step`` updates.

    Attributes:
        format: version of the format, `tvlars_probe.runners.checkpoints.files.FORMAT`.
        step: updates of the run so far.
        phase: name of the phase.
        epochs: epochs of the phase that are complete.
        batches: batches of the running epoch that are done.
        seconds: time that the running epoch has taken so far.
        tally: scores of those batches, None where there are none.
        model: weights and buffers, by name.
        optimizer: the optimizer's state.
        scheduler: the state of the learning-rate scheduler.
        recorder: the recorder's state, with that of its probes.
        rng: the states of torch's random generators, by device type, one entry per rank.
        best: the best checkpoint so far.
        config: the configuration of the run.
        manifest: the manifest at that time, as JSON.
    """

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
    """Yield what is wrong with a checkpoint, as far as it can be told from the checkpoint alone."""
    # Each check takes for granted what the ones before it have established.
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
    """Yield the probes' states that aren't a sharpness probe's: ``train`` has no other probes."""
    for probe in probes:
        if not fits(probe, SharpnessState):
            yield f"a probe's state is {shown(probe)}"


def _disagreements(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the entries that contradict each other."""
    step, batches, recorder, tally = state["step"], state.get("batches", 0), state["recorder"], state.get("tally")
    if state["phase"] not in PHASES:
        yield f"its phase is {shown(state['phase'])}"
    if recorder["step"] != step or recorder["phase"] != state["phase"]:
        yield f"its recorder is in step {recorder['step']} of {shown(recorder['phase'])}"
    # Before the run's first epoch has ended, the recorder says None where step − batches is 0.
    if "last_epoch" in recorder and recorder["last_epoch"] != (step - batches or None):
        yield f"its last epoch ended after {recorder['last_epoch']} updates, and {batches} batches ago"
    if {*recorder["rates"]} - {*state["model"]}:
        yield "it has rates of tensors that the model hasn't"
    if (tally is None) != (batches == 0):
        yield "it lacks what the running epoch's batches scored" if batches else "it has a score of no batches"
    # There is a generator's state for each rank that saved, so these count the ranks.
    if tally is not None and (len(tally["sums"]) != len(state["rng"]) or any(len(s) != _SUMS for s in tally["sums"])):
        yield "its score is of other ranks, or of other sums, than are kept"
    if not state["rng"] or not all("cpu" in generators for generators in state["rng"]):
        yield "it lacks a rank's random generator"


def _out_of_range(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield counts, times and scores that no run can have."""
    recorder, tally, probes = state["recorder"], state.get("tally"), state["recorder"].get("probes", [])
    # The trace keeps steps as int64.
    counts = {"step": state["step"], "epochs": state["epochs"], "batches": state.get("batches", 0)}
    yield from (f"its {name} is {shown(count)}" for name, count in counts.items() if not 0 <= count < 1 << 63)
    if recorder["samples"] is None:
        yield "its recorder doesn't know how many samples were seen"
    times = [probe.get(name, 0.0) for probe in probes for name in ("elapsed", "spent", "last")]
    numbers = {"seconds": [state.get("seconds", 0.0), *times]}
    numbers |= {"scores": [number for sums in tally["sums"] for number in sums] if tally else []}
    for name, values in numbers.items():
        for value in values:
            # "nan" and "inf" as texts pass for floats when types are checked; a NaN fails any comparison. Neither loss
            # has negative terms, so no sum is below 0.
            if isinstance(value, str) or not 0 <= value < math.inf:
                yield f"{shown(value)} stands among its {name}"


def misplaced(state: Mapping[str, Any], *, first_step: int, steps_per_epoch: int, epochs: int) -> Iterator[str]:
    """Yield a text unless step = first_step + epochs·steps_per_epoch + batches, at a place within the phase.

    Args:
        state: the checkpoint.
        first_step: updates of the run before the phase.
        steps_per_epoch: batches of an epoch of the phase.
        epochs: epochs of the whole phase; the formula's epochs are those that the checkpoint has done.
    """
    step, done, batches = state["step"], state["epochs"], state.get("batches", 0)
    # All batches of an epoch may be done: a signal in its last step saves before the evaluation.
    if done > epochs or batches > steps_per_epoch or step != first_step + done * steps_per_epoch + batches:
        yield (
            f"after {step} updates it can't be in epoch {done}, batch {batches} (the phase begins at {first_step}, "
            f"with {epochs} epochs of {steps_per_epoch} batches)"
        )


def misfits(state: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """Yield where a checkpoint contradicts the manifest: the run, the place in it, the shapes of the weights."""
    run_id = state["recorder"].get("run_id")
    if run_id is not None and run_id != manifest.run_id:
        yield f"it belongs to the run {shown(run_id)}, not {shown(manifest.run_id)}"
        return  # nothing else of another run has to agree
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
    """Yield what shows that a saved state isn't that of ``optimizer``: its groups, its entries, their shapes."""
    groups, theirs = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group.get("params", ())) for group in theirs]:
        yield "its optimizer's parameter groups are others"
        return
    parameters = [p for group in groups for p in group["params"]]
    numbers = [number for group in theirs for number in group["params"]]
    kept = [saved["state"].get(number, {}) for number in numbers]
    described = describe(optimizer)
    # Optimizers keep the same entries of every parameter that they update, and none of frozen ones. Where two are
    # combined, each keeps its own.
    kinds = [d.optimizer for d, group in zip(described, groups, strict=True) for _ in group["params"]]
    updated = [n for n, p in enumerate(parameters) if p.requires_grad]
    if len({(kinds[n], frozenset(kept[n])) for n in updated}) > len({kinds[n] for n in updated}):
        yield "its optimizer keeps other things of some parameters than of others"
    remembers = any(group.keeps_state for group in described)
    if {*saved["state"]} - {*numbers} or (remembers and not saved["state"]):
        yield "its optimizer's state is of other parameters"
    for entry, p in zip(kept, parameters, strict=True):
        for name, value in entry.items():
            # An entry is as large as its parameter, or a counter. Without momentum a buffer may be kept as None.
            alike = isinstance(value, Tensor) and (value.numel() == 1 or value.shape == p.shape)
            if alike or (value is None and not remembers) or (name == "step" and fits(value, float)):
                continue
            there = f"the shape {[*value.shape]}" if isinstance(value, Tensor) else f"the value {shown(value)}"
            yield f"its optimizer's {name} of a parameter of shape {[*p.shape]} has {there}"


def unlike_options(mine: Mapping[str, Any], theirs: Mapping[str, Any], moving: Collection[str]) -> Iterator[str]:
    """Yield the options of a parameter group that differ from the run's own.

    Args:
        mine: the run's options.
        theirs: the options in the checkpoint.
        moving: names of options that schedules and updates change: only their types have to agree.
    """
    for name in sorted(mine):
        if name not in theirs:
            yield f"it lacks {name}"
            continue
        # Where the run has None, the optimizer is free to choose (foreach, fused): any plain value passes.
        same = _same_kind(mine[name], theirs[name])
        if not same or (name not in moving and mine[name] is not None and [mine[name]] != [theirs[name]]):
            yield f"its {name} is {shown(theirs[name])}, and the run's {shown(mine[name])}"


def _same_kind(mine: Any, other: Any) -> bool:
    """Whether two options are both numbers, sequences of as many options of one kind, or of the same class."""
    if mine is None:
        return not isinstance(other, Tensor)
    # The texts "inf" and "nan" fit a float, since JSON has no other way to write them.
    if fits(mine, float) and not isinstance(mine, str):
        return fits(other, float) and not isinstance(other, str)
    if isinstance(mine, Sequence) and not isinstance(mine, str):
        same = isinstance(other, Sequence) and not isinstance(other, str) and len(mine) == len(other)
        return same and all(_same_kind(a, b) for a, b in zip(mine, other, strict=True))
    return isinstance(other, type(mine))
