"""The curvature at a run's checkpoints: what ``tvlars-probe sharpness`` computes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.curvature.measuring import Measures, measure
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.errors import UserError
from tvlars_probe.probes.readers.rates import applied_rates
from tvlars_probe.probes.sharpness import curvature_columns, new_measurement_id
from tvlars_probe.runners.config import PlaceConfig
from tvlars_probe.runners.launching.places import place
from tvlars_probe.runners.launching.processes import launch
from tvlars_probe.runners.phases.probe_sample import PIECE, ProbeSample
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
from tvlars_probe.traces.manifest import Manifest, now
from tvlars_probe.traces.run_directory import refuse_links
from tvlars_probe.traces.schema import ONLY_PHASE
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.results import Density, Sharpness

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class SharpnessJob:
    """What to measure of which run. It is pickled for the processes of the ranks.

    Attributes:
        run: run directory.
        checkpoint: last, best, all, or a step.
        measures: what to compute.
        split: part of the data: train, val or test.
        samples: number of samples of that part, the same ones for every run; None takes 1,000, or all where there are
            fewer.
        bn_modes: BatchNorm modes; everything is measured in each.
        engines: engines; everything is measured by each, in every mode.
        precision: type in which the model computes: float32 or float64; None for that of the run's weights.
        place: devices and processes.
        model: ``package.module:function`` that gives the model, loss and data of a run that ``train`` did not make.
        name: measurement_id of the rows.
    """

    run: Path
    checkpoint: str = "last"
    measures: Measures = field(default_factory=Measures)
    split: str = "train"
    samples: int | None = None
    bn_modes: tuple[str, ...] = ("eval",)
    engines: tuple[str, ...] = ("lanczos",)
    precision: str | None = None
    place: PlaceConfig = field(default_factory=PlaceConfig)
    model: str | None = None
    name: str = field(default_factory=new_measurement_id)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of the state after ``step`` updates, in which phase that is, and in which precision."""

    step: int
    phase: str
    precision: str
    sharpness: Sharpness


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
    count = len(_draw(job, part_of(data, job.split)).indices)
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


def _draw(job: SharpnessJob, images: Any) -> ProbeSample:
    """The sample that a job asks for."""
    count = job.samples if job.samples is not None else min(DEFAULT_SAMPLES, len(images))
    return ProbeSample.draw(images, count)


def _work(ranks: Ranks, job: SharpnessJob) -> None:
    """Do one rank's part of the measurement; rank 0 writes the rows."""
    left_out: dict[str, None] = {}
    with status_line(speaks=ranks.is_first) as say:
        states = [_of_stranger(ranks, job, say)] if job.model is not None else _of_checkpoints(ranks, job, say)
        # Checkpoint by checkpoint: what one has given is written before the next is measured.
        for measured in states:
            if ranks.is_first:
                _write(job, measured)
            left_out |= dict.fromkeys(name for each in measured for name in each.sharpness.left_out)
    if ranks.is_first and left_out:
        print(f"left out, frozen or without effect on the loss: {', '.join(left_out)}", file=sys.stderr, flush=True)


def _of_checkpoints(ranks: Ranks, job: SharpnessJob, say: Any) -> Any:
    """Yield for each checkpoint what was measured in every BatchNorm mode by every engine."""
    config = load_config(job.run)
    data = config.data.load()
    sample = _draw(job, part_of(data, job.split))
    dtype = own_dtype(config) if job.precision is None else DTYPES[job.precision]
    for path in choose_checkpoints(job.run, job.checkpoint):
        state = restore_state(config, data, path, device=ranks.device, dtype=dtype)
        yield [
            _measure(ranks, job, state, sample, dtype, engine, mode, partial(_say, say, path))
            for mode in job.bn_modes
            for engine in job.engines
        ]


def _say(say: Any, path: Path, text: str) -> None:
    say(f"{path.name}: {text}")


def _measure(
    ranks: Ranks,
    job: SharpnessJob,
    state: RestoredState,
    sample: ProbeSample,
    dtype: torch.dtype,
    engine: str,
    mode: str,
    say: Any,
) -> Measured:
    phase = state.phase
    # Batch statistics, and a loss that joins all samples, need the sample in one batch.
    whole = mode == "train" or not phase.is_sum_over_samples
    batches = sample.batches(ranks, dtype, whole=whole, make=phase.probe_batch)
    objective = Objective(state.model, phase.probe_loss, batches, bn_mode=mode, shards=ranks)
    rates = None
    if "effective" in job.measures.operators and state.step:
        # By the checkpoint's lr × trust_ratio: the schedule has moved the optimizer's lr on since that update.
        rates = applied_rates(state.model, state.optimizer, scaled_lr=state.scaled_lr, step=state.step - 1)
    sharpness = measure(
        objective,
        dict(state.model.named_parameters()),
        replace(job.measures, engine=engine),
        rates=rates,
        sample_id=sample.sample_id,
        report=say,
    )
    return Measured(state.step, phase.name, _name(dtype), sharpness)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_stranger(ranks: Ranks, job: SharpnessJob, say: Any) -> list[Measured]:
    """What was measured of a run from another loop, with the model, loss and data that the user's function gives."""
    manifest = Manifest.load(job.run)
    assert job.model is not None
    model, loss_fn, (inputs, targets) = made_by(job.model, manifest.config)
    if "effective" in job.measures.operators:
        raise UserError(
            "--operator effective needs the optimizer's rates, which --model doesn't give: call tvlars_probe.sharpness("
            "..., rates=tvlars_probe.applied_rates(model, optimizer)) in your own code"
        )
    if job.samples is not None and not 1 <= job.samples <= len(inputs):
        raise UserError(f"--samples {job.samples}: there are {len(inputs):,} (allowed: 1 to {len(inputs)})")
    wide = any(p.dtype == torch.float64 for p in model.parameters())
    dtype = DTYPES[job.precision or ("float64" if wide else "float32")]
    count = job.samples or len(inputs)
    model.to(ranks.device, dtype)
    whole = tuple(
        part[:count].to(ranks.device, dtype if part.is_floating_point() else part.dtype) for part in (inputs, targets)
    )
    # No checkpoint tells the step: the model counts as the state after the last recorded update.
    made_steps = [segment["last_step"] for segment in manifest.segments if segment["last_step"] is not None]
    last = max(made_steps, default=-1) + 1
    found = []
    for mode in job.bn_modes:
        size = count if mode == "train" else PIECE  # batch statistics need the sample in one batch
        batches = list(zip(*(part.split(size) for part in whole), strict=True))
        objective = Objective(model, supervised(loss_fn), batches, bn_mode=mode)
        for engine in job.engines:
            chosen = dict(model.named_parameters())
            sharpness = measure(objective, chosen, replace(job.measures, engine=engine), report=say)
            found.append(Measured(last, ONLY_PHASE, _name(dtype), sharpness))
    return found


def _write(job: SharpnessJob, found: list[Measured]) -> None:
    """Append the rows below ``sharpness/``; the tables of the trace stay as they are."""
    writer = TraceWriter(job.run / "sharpness", Manifest.load(job.run).run_id)
    for measured in found:
        sharpness = measured.sharpness
        where = {"step": measured.step, "phase": measured.phase, "split": job.split if job.model is None else None}
        columns = curvature_columns(sharpness.measurements, **where)  # type: ignore[arg-type]
        if columns:
            columns["measurement_id"] = [job.name] * len(columns["step"])
            writer.append("curvature", columns)
        whole = {(operator, "all", "all"): density for operator, density in sharpness.densities.items()}
        blocks = {(operator, layer, "layer"): d for (operator, layer), d in sharpness.layer_densities.items()}
        for (operator, scope, kind), density in (whole | blocks).items():
            about = {
                "operator": operator,
                "scope": scope,
                "scope_kind": kind,
                "samples": sharpness.samples,
                "sample_id": sharpness.sample_id,
                "loss": sharpness.loss,
                "bn_mode": sharpness.bn_mode,
                "seed": job.measures.seed,
                "precision": measured.precision,
                "engine": "lanczos",  # the only one that gives a density
            }
            writer.append("spectrum", _spectrum(density, where | about | {"measurement_id": job.name}))
    writer.flush()


def _spectrum(density: Density, common: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table ``spectrum``, by column: one per point of the density's grid."""
    length, made = len(density.grid), now()
    columns = {name: [value] * length for name, value in common.items() if value is not None}
    return columns | {
        "created_at": [made] * length,
        "grid": density.grid,
        "density": density.density,
        "error": density.standard_error,
        "sigma": [density.sigma] * length,
    }
