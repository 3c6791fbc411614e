"""The gradient's noise at a run's checkpoints, on a fixed sample."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.noise.cutting import objective_of
from tvlars_probe.noise.measuring import noise_of
from tvlars_probe.probes.noise import noise_columns
from tvlars_probe.probes.sharpness import new_measurement_id
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.launching.places import place
from tvlars_probe.runners.launching.processes import launch
from tvlars_probe.runners.phases.probe_sample import ProbeSample
from tvlars_probe.runners.posthoc.restored_state import (
    DEFAULT_SAMPLES,
    RestoredState,
    choose_checkpoints,
    load_config,
    own_dtype,
    part_of,
    restore_state,
)
from tvlars_probe.runners.progress import status_line
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import refuse_links
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.noise.results import GradientNoise

DTYPES = {"float32": torch.float32, "float64": torch.float64}

_REMEDY = "The noise of other runs: call tvlars_probe.gradient_noise(model, loss_fn, data) in your own code"


@dataclass(frozen=True, kw_only=True)
class NoiseJob:
    """The noise of which run's gradient to measure. It is pickled for the processes of the ranks.

    Attributes:
        run: run directory.
        checkpoint: last, best, all, or a step.
        split: part of the data: train, val or test.
        samples: number of samples of that part, the same ones for every run; None takes 1,000, or all where there are
            fewer.
        piece: samples of a piece; None compares single samples.
        bn_mode: BatchNorm: eval, frozen-batch, or train, which needs ``piece``.
        eigenvectors: how many of the Hessian's top eigenvectors to find, for the noise's share along them.
        precision: type in which the model computes: float32 or float64; None for that of the run's weights.
        seed: of the search for eigenvectors.
        place: devices and processes.
        name: measurement_id of the rows.

    Raises:
        UserError: a setting is outside its range.
    """

    run: Path
    checkpoint: str = "last"
    split: str = "train"
    samples: int | None = None
    piece: int | None = None
    bn_mode: str = "eval"
    eigenvectors: int = 0
    precision: str | None = None
    seed: int = 0
    place: PlaceConfig = field(default_factory=PlaceConfig)
    name: str = field(default_factory=new_measurement_id)

    def __post_init__(self) -> None:
        if self.piece is not None and self.piece < 1:
            raise UserError(f"--piece {self.piece} is too few (allowed: 1 or more)")
        if self.samples is not None and self.samples < 2 * (self.piece or 1):
            raise UserError(
                f"--samples {self.samples} is too few (allowed: {2 * (self.piece or 1)} or more, as noise shows "
                "between two pieces)"
            )
        if self.bn_mode not in BN_MODES:
            raise unknown("--bn", self.bn_mode, BN_MODES)
        if self.eigenvectors < 0:
            raise UserError(f"--eigenvectors {self.eigenvectors} is too few (allowed: 0 or more)")
        if self.precision is not None and self.precision not in DTYPES:
            raise unknown("--precision", self.precision, DTYPES)

    def draw(self, images: Any) -> ProbeSample:
        """The sample of a part of the data."""
        return ProbeSample.draw(images, self.samples if self.samples is not None else min(DEFAULT_SAMPLES, len(images)))


def measure_noise(job: NoiseJob) -> str:
    """Measure, append the rows to the run's table ``noise/``, and return their measurement_id.

    Raises:
        UserError: something can't be done as asked; nothing has been written.
        RunFailedError: a rank ended with an error.
    """
    refuse_links(job.run, ("noise",))
    placement = place(job.place)
    config = load_config(job.run, remedy=_REMEDY)
    choose_checkpoints(job.run, job.checkpoint)
    count = len(job.draw(part_of(config.data.load(), job.split)).indices)
    if count < placement.nproc:
        raise UserError(f"--samples {count} over {placement.nproc} ranks: each rank needs one at least")
    launch(_work, job, placement, job.place)
    return job.name


def _work(ranks: Ranks, job: NoiseJob) -> None:
    """Do one rank's part of the measurement; rank 0 writes the rows."""
    config = load_config(job.run, remedy=_REMEDY)
    data = config.data.load()
    sample = job.draw(part_of(data, job.split))
    dtype = own_dtype(config) if job.precision is None else DTYPES[job.precision]
    told: dict[str, None] = {}
    with status_line(speaks=ranks.is_first) as say:
        # Checkpoint by checkpoint: what one has given is written before the next is measured.
        paths = choose_checkpoints(job.run, job.checkpoint)
        for number, path in enumerate(paths, 1):
            which = f"checkpoint {number} of {len(paths)} ({path.stem})"
            state = restore_state(config, data, path, device=ranks.device, dtype=dtype)
            found = _measure(ranks, job, state, sample, dtype, lambda text, which=which: say(f"{which}: {text}"))
            if ranks.is_first:
                _write(job, state, found)
            told |= dict.fromkeys(found.notes)
            if found.left_out:
                told |= {f"left out, frozen or without effect on the loss: {', '.join(found.left_out)}": None}
    if ranks.is_first:
        for note in told:
            print(note, file=sys.stderr, flush=True)


def _measure(
    ranks: Ranks, job: NoiseJob, state: RestoredState, sample: ProbeSample, dtype: torch.dtype, say: Any
) -> GradientNoise:
    phase = state.phase
    batches = sample.batches(ranks, dtype, whole=False, make=phase.probe_batch)
    objective = objective_of(
        state.model,
        phase.probe_loss,
        batches,
        bn_mode=job.bn_mode,
        shards=ranks,
        is_sum_over_samples=phase.is_sum_over_samples,
    )
    return noise_of(
        objective,
        dict(state.model.named_parameters()),
        shards=ranks,
        piece=job.piece,
        eigenvectors=job.eigenvectors,
        seed=job.seed,
        sample_id=sample.sample_id,
        report=say,
    )


def _write(job: NoiseJob, state: RestoredState, found: GradientNoise) -> None:
    """Append the rows of one checkpoint; the tables of the trace stay as they are."""
    writer = TraceWriter(job.run, Manifest.load(job.run).run_id)
    about = {"step": state.step, "phase": state.phase.name, "split": job.split, "measurement_id": job.name}
    writer.append("noise", noise_columns(found, **about))  # type: ignore[arg-type]
    writer.flush()
