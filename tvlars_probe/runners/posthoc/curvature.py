"""The curvature at a run's checkpoints: what ``tvlars-probe sharpness`` computes."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tvlars_probe.curvature.measures import Measures
from tvlars_probe.curvature.measuring import measure, sample_hash
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.updates import coming_update
from tvlars_probe.errors import UserError
from tvlars_probe.probes.readers.rates import applied_rates
from tvlars_probe.probes.sharpness import new_measurement_id
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.launching.places import place
from tvlars_probe.runners.launching.processes import launch
from tvlars_probe.runners.phases.probe_sample import PIECE, ProbeSample, check_size
from tvlars_probe.runners.posthoc.curvature_rows import Measured, write
from tvlars_probe.runners.posthoc.restored_state import (
    DEFAULT_SAMPLES,
    RestoredState,
    choose_checkpoints,
    load_config,
    own_dtype,
    part_of,
    restore_state,
)
from tvlars_probe.runners.posthoc.user_model import made_by
from tvlars_probe.runners.progress import status_line
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import refuse_links
from tvlars_probe.traces.schema import ONLY_PHASE

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.collectives import Ranks

MINI_BATCHES = 8
"""How many mini-batches batch sharpness is averaged over at least, unless samples are given, or there are fewer."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class SharpnessJob:
    """What to measure of which run. It is pickled for the processes of the ranks.

    Attributes:
        run: run directory.
        checkpoint: last, best, all, or a step.
        measures: what to compute.
        split: part of the data: train, val or test.
        samples: number of samples of that part, the same ones for every run; None takes 1,000, for batch sharpness
            eight mini-batches where these are more, and all where there are fewer.
        draws: number of disjoint samples of that size, on each of which everything is measured; None is one sample.
            The first is the one that is taken without draws.
        bn_modes: BatchNorm modes; everything is measured in each.
        engines: engines; everything is measured by each, in every mode.
        precision: type in which the model computes: float32 or float64; None for that of the run's weights.
        place: devices and processes.
        model: ``package.module:function`` that gives the model, loss and data of a run that ``train`` did not make.
        name: measurement_id of the rows.

    Raises:
        UserError: fewer than two draws.
    """

    run: Path
    checkpoint: str = "last"
    measures: Measures = field(default_factory=Measures)
    split: str = "train"
    samples: int | None = None
    draws: int | None = None
    bn_modes: tuple[str, ...] = ("eval",)
    engines: tuple[str, ...] = ("lanczos",)
    precision: str | None = None
    place: PlaceConfig = field(default_factory=PlaceConfig)
    model: str | None = None
    name: str = field(default_factory=new_measurement_id)

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < 2:
            raise UserError(
                f"--draws {self.draws} shows no difference between samples (allowed: 2 or more; none for one sample)"
            )

    @property
    def number(self) -> int:
        """Number of samples."""
        return self.draws or 1

    def size_of_sample(self, there: int) -> int:
        """How many of the ``there`` samples of the data each draw takes."""
        # One mini-batch would have no standard error.
        wanted = max(DEFAULT_SAMPLES, MINI_BATCHES * (self.measures.batch_size or 0))
        return self.samples if self.samples is not None else min(wanted, max(there // self.number, 1))

    def measures_of(self, engine: str, draw: int) -> Measures:
        """What to compute by an engine on a draw."""
        # With random vectors of its own the error of an estimator is independent from draw to draw: then the spread
        # over draws holds it, too.
        return replace(self.measures, engine=engine, seed=self.measures.seed + draw)


def measure_run(job: SharpnessJob) -> str:
    """Measure, append the rows to the tables below the run's ``sharpness/``, and return their measurement_id.

    Raises:
        UserError: something can't be done as asked; nothing has been written.
        RunFailedError: a rank ended with an error.
    """
    refuse_links(job.run, ("sharpness", "sharpness/curvature", "sharpness/spectrum"))
    placement = place(job.place)
    if job.model is None:
        _check(job, placement.nproc)
    elif placement.nproc > 1:
        raise UserError("--model gives one process's data: use --nproc 1")
    launch(_work, job, placement, job.place)
    return job.name


def _check(job: SharpnessJob, nproc: int) -> None:
    """Refuse what can't be done before any process is started.

    Raises:
        UserError: something can't.
    """
    config = load_config(job.run)
    paths = choose_checkpoints(job.run, job.checkpoint)
    data = config.data.load()
    count = len(_draw(job, part_of(data, job.split))[0].indices)
    if count < nproc:
        raise UserError(f"--samples {count} over {nproc} ranks: each rank needs one at least")
    if nproc > 1 and "pyhessian" in job.engines:
        raise UserError(
            f"--engine pyhessian with {nproc} ranks: it runs on one only; use --nproc 1, or --engine lanczos"
        )
    # One checkpoint is tried here, on the CPU; the others are read when their turn comes.
    cpu = torch.device("cpu")
    model = restore_state(config, data, paths[0], device=cpu, dtype=own_dtype(config)).model
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    asked = job.measures.top + job.measures.bottom
    if asked > size:
        raise UserError(f"{asked:,} eigenvalues: the model has {size:,} parameters, ask for fewer")


def _draw(job: SharpnessJob, images: Any) -> tuple[ProbeSample, ...]:
    """The samples that a job asks for."""
    return ProbeSample.draws(images, job.size_of_sample(len(images)), job.number)


def _work(ranks: Ranks, job: SharpnessJob) -> None:
    """Do one rank's part of the measurement; rank 0 writes the rows."""
    left_out: dict[str, None] = {}
    notes: dict[str, None] = {}
    with status_line(speaks=ranks.is_first) as say:
        states = [_of_stranger(ranks, job, say)] if job.model is not None else _of_checkpoints(ranks, job, say)
        # Checkpoint by checkpoint: what one has given is written before the next is measured.
        for measured in states:
            if ranks.is_first:
                write(
                    job.run,
                    measured,
                    measurement_id=job.name,
                    split=job.split if job.model is None else None,
                    seed=job.measures.seed,
                    has_draws=bool(job.draws),
                )
            left_out |= dict.fromkeys(name for each in measured for name in each.sharpness.left_out)
            notes |= dict.fromkeys(note for each in measured for note in each.sharpness.notes)
    if ranks.is_first and left_out:
        print(f"left out, frozen or without effect on the loss: {', '.join(left_out)}", file=sys.stderr, flush=True)
    if ranks.is_first:
        for note in notes:
            print(note, file=sys.stderr, flush=True)


def _of_checkpoints(ranks: Ranks, job: SharpnessJob, say: Any) -> Any:
    """Yield for each checkpoint what was measured in every BatchNorm mode by every engine on every draw."""
    config = load_config(job.run)
    data = config.data.load()
    samples = _draw(job, part_of(data, job.split))
    dtype = own_dtype(config) if job.precision is None else DTYPES[job.precision]
    paths = choose_checkpoints(job.run, job.checkpoint)
    for number, path in enumerate(paths, 1):
        state = restore_state(config, data, path, device=ranks.device, dtype=dtype)
        which = f"checkpoint {number} of {len(paths)} (step {state.step:,})"
        yield [
            _measure(ranks, job, state, (draw, sample), dtype, engine, mode, _saying(say, job, draw, which))
            for mode in job.bn_modes
            for engine in job.engines
            for draw, sample in enumerate(samples)
        ]


def _saying(say: Any, job: SharpnessJob, draw: int, *words: str) -> Any:
    """Whoever speaks of what is being computed, made to say of which draw first, after ``words``."""
    of = ", ".join((*words, f"draw {draw + 1} of {job.draws}") if job.draws else words)
    return lambda text: say(f"{of}: {text}" if of else text)


def _measure(
    ranks: Ranks,
    job: SharpnessJob,
    state: RestoredState,
    drawn: tuple[int, ProbeSample],
    dtype: torch.dtype,
    engine: str,
    mode: str,
    say: Any,
) -> Measured:
    phase, (draw, sample) = state.phase, drawn
    # Batch statistics, and a loss that joins all samples, need the sample in one batch.
    whole = mode == "train" or not phase.is_sum_over_samples
    batches = sample.batches(ranks, dtype, whole=whole, make=phase.probe_batch)
    objective = Objective(
        state.model,
        phase.probed,
        batches,
        bn_mode=mode,
        shards=ranks,
        is_sum_over_samples=phase.is_sum_over_samples,
    )
    parameters = dict(state.model.named_parameters())
    update = coming_update(objective, parameters, state.optimizer) if job.measures.of_updates else None
    rates = None
    if "effective" in job.measures.operators and state.step:
        # By the checkpoint's lr × trust_ratio: the schedule has moved the optimizer's lr on since that update.
        rates = applied_rates(state.model, state.optimizer, scaled_lr=state.scaled_lr, step=state.step - 1)
    sharpness = measure(
        objective,
        parameters,
        job.measures_of(engine, draw),
        rates=rates,
        update=update,
        sample_id=sample.sample_id,
        report=say,
    )
    return Measured(state.step, phase.name, draw, _name(dtype), sharpness)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_stranger(ranks: Ranks, job: SharpnessJob, say: Any) -> list[Measured]:
    """What was measured of a run from another loop, with the model, loss and data that the user's function gives."""
    manifest = Manifest.load(job.run)
    assert job.model is not None
    model, loss_fn, (inputs, targets), weights = made_by(job.model, manifest.config)
    if "effective" in job.measures.operators:
        raise UserError(
            "--operator effective needs the optimizer's rates, which --model doesn't give: call tvlars_probe.sharpness("
            "..., rates=tvlars_probe.applied_rates(model, optimizer)) in your own code"
        )
    if job.measures.of_updates:
        raise UserError(
            "directional and critical sharpness need the optimizer, which --model doesn't give: call "
            "tvlars_probe.sharpness(..., optimizer=optimizer) in your own code"
        )
    # The data come as they are: pieces one after the other, of which the first is what one sample takes.
    count = job.samples if job.samples is not None else max(len(inputs) // job.number, 1)
    check_size(count, job.number, len(inputs))
    wide = any(p.dtype == torch.float64 for p in model.parameters())
    dtype = DTYPES[job.precision or ("float64" if wide else "float32")]
    model.to(ranks.device, dtype)
    if isinstance(loss_fn, nn.Module):
        loss_fn.to(ranks.device, dtype)  # class weights must have the type of the model's outputs
    # No checkpoint tells the step: the model counts as the state after the last recorded update.
    made_steps = [segment["last_step"] for segment in manifest.segments if segment["last_step"] is not None]
    last = max(made_steps, default=-1) + 1
    found = []
    for mode, draw in itertools.product(job.bn_modes, range(job.number)):
        chosen = range(draw * count, (draw + 1) * count)
        whole = (part[chosen.start : chosen.stop].to(ranks.device) for part in (inputs, targets))
        typed = [part.to(dtype) if part.is_floating_point() else part for part in whole]
        size = count if mode == "train" else PIECE  # batch statistics need the sample in one batch
        batches = list(zip(*(part.split(size) for part in typed), strict=True))
        objective = Objective(model, supervised(loss_fn), batches, bn_mode=mode, weights=weights)
        for engine in job.engines:
            sharpness = measure(
                objective,
                dict(model.named_parameters()),
                job.measures_of(engine, draw),
                sample_id=sample_hash(chosen),
                report=_saying(say, job, draw),
            )
            found.append(Measured(last, ONLY_PHASE, draw, _name(dtype), sharpness))
    return found
