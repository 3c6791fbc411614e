"""Slices through the loss around a checkpoint, or from one to another: what ``tvlars-probe landscape`` computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.results import SLICE_BN_MODES
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.probes.sharpness import new_measurement_id
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.evaluation import loss_sum
from tvlars_probe.runners.launching.places import place
from tvlars_probe.runners.phases.probe_sample import ProbeSample
from tvlars_probe.runners.posthoc.restored_state import (
    DEFAULT_SAMPLES,
    RestoredState,
    choose_checkpoint,
    load_config,
    own_dtype,
    part_of,
    restore_state,
)
from tvlars_probe.runners.progress import status_line
from tvlars_probe.traces.manifest import Manifest, now
from tvlars_probe.traces.run_directory import refuse_links
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    Named = dict[str, Tensor]

_REMEDY = "Slices can be computed of runs that tvlars-probe train made"
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, kw_only=True)
class LandscapeJob:
    """Which slice of which run to compute.

    Attributes:
        run: run directory.
        run2: run directory of the other end of a line; None for a slice along random directions.
        checkpoint: last, best, or a step (of both runs).
        dimensions: number of random directions, 1 or 2.
        points: number of points along each direction; the checkpoints come on top where they aren't among them.
        span: a direction is followed from −span to span (by default 1), a line so far beyond both of its ends (0.25).
        bn_mode: "interpolated": BatchNorm's running statistics are the checkpoint's, and on a line move with the
            weights; "re-estimated": they are taken anew from the sample at each point.
        split: part of the data: train, val or test.
        samples: number of samples of that part; None takes 1,000, or all where there are fewer.
        seed: seed of the directions.
        place: the device.
        name: measurement_id of the rows.

    Raises:
        UserError: a setting is outside its range, or two settings don't go together.
    """

    run: Path
    run2: Path | None = None
    checkpoint: str = "last"
    dimensions: int = 1
    points: int = 31
    span: float | None = None
    bn_mode: str = "interpolated"
    split: str = "train"
    samples: int | None = None
    seed: int = 0
    place: PlaceConfig = field(default_factory=PlaceConfig)
    name: str = field(default_factory=new_measurement_id)

    def __post_init__(self) -> None:
        if self.dimensions not in (1, 2):
            raise UserError(f"--dimensions {self.dimensions} can't be drawn (allowed: 1 or 2)")
        if self.run2 is not None and self.dimensions == 2:
            raise UserError("between two runs there is a line: leave out --dimensions 2, or the second run")
        if self.checkpoint == "all":
            raise UserError("--checkpoint all: a slice is around one checkpoint (allowed: last, best, or a step)")
        if self.bn_mode not in SLICE_BN_MODES:
            raise unknown("--bn", self.bn_mode, SLICE_BN_MODES)
        if not 3 <= self.points <= 1000:
            raise UserError(f"--points {self.points} is outside its range (allowed: 3 to 1000)")
        if self.span is not None and not 0 <= self.span < math.inf:
            raise UserError(f"--span {self.span:g} is outside its range (allowed: 0 or more)")
        if self.run2 is not None and self.run2.resolve() == self.run.resolve():
            raise UserError(f"{self.run} is given twice: a line needs two runs, slices of one need it once")

    def grid(self) -> list[tuple[float, float | None]]:
        """The points (alpha, beta), among them the checkpoints themselves; beta is None in one dimension."""
        if self.run2 is not None:
            span = 0.25 if self.span is None else self.span
            return [(a, None) for a in sorted({*_axis(-span, 1 + span, self.points), 0.0, 1.0})]
        span = 1.0 if self.span is None else self.span
        axis = sorted({*_axis(-span, span, self.points), 0.0})
        return [(a, None) for a in axis] if self.dimensions == 1 else [(a, b) for b in axis for a in axis]


def _axis(first: float, last: float, points: int) -> list[float]:
    """Evenly spaced numbers from ``first`` to ``last``."""
    # Rounded, so that a value within rounding of 0 or 1 is the checkpoint itself; + 0.0 makes a 0 of −0.
    return [round(value, 12) + 0.0 for value in torch.linspace(first, last, points, dtype=torch.float64).tolist()]


def filter_normalised(weights: Named, seed: int) -> Named:
    """A random direction d, scaled by filters to the weights w: d_i ← d_i/‖d_i‖·‖w_i‖ (Li et al. 2018, section 4).

    Filter i is what output unit i holds: index i of a tensor's first dimension. Tensors of at most one dimension
    (biases, normalisation) don't move.

    Args:
        weights: the weights, by name.
        seed: seed of the normal numbers from which d is made.

    Returns:
        the direction, by name, in the shapes of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, w in weights.items():
        # On the CPU and in float64, so that every device and precision gets the same direction.
        drawn = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
        if w.ndim <= 1:
            direction[name] = torch.zeros_like(w)
            continue
        # In the tensor's own type the squares may overflow, or vanish.
        wide = accumulation_dtype(w.device)
        own, norm = (torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=wide).clamp_min(1e-30) for t in (w, drawn))
        direction[name] = drawn * (own / norm).to(w).reshape(-1, *[1] * (w.ndim - 1))
    return direction


def measure_landscape(job: LandscapeJob) -> str:
    """Compute a slice, append it to the run's table ``landscape``, and return the rows' measurement_id.

    Raises:
        UserError: something can't be done as asked; nothing has been written.
    """
    refuse_links(job.run, ("landscape",))
    placement = place(job.place)
    device = torch.device(placement.kind, placement.indices[0]) if placement.indices else torch.device(placement.kind)
    state, other, batches = _prepare(job, device)
    buffers, buffers2 = ({} if s is None else _float_buffers(s.model) for s in (state, other))
    centre = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    if other is not None:
        # w = w₁ + alpha·(w₂ − w₁): alpha is 0 at the first run's checkpoint, 1 at the second's.
        ends = dict(other.model.named_parameters())
        directions = [{name: ends[name].detach() - w for name, w in centre.items()}]
    else:
        directions = [filter_normalised(centre, job.seed + k) for k in range(job.dimensions)]
    started, grid, rows = time.perf_counter(), job.grid(), []
    with status_line(speaks=True) as say:
        for number, point in enumerate(grid):
            say(f"point {number + 1} of {len(grid)}")
            _move(state.model, centre, directions, point)
            _set_buffers(state.model, buffers, buffers2, point[0])
            if job.bn_mode == "re-estimated":
                _estimate_statistics(state.model, batches)
            rows.append((*point, *_scores(state.model, batches)))
    _write(job, state, rows, sum(len(y) for _, y in batches), time.perf_counter() - started)
    return job.name


def _prepare(
    job: LandscapeJob, device: torch.device
) -> tuple[RestoredState, RestoredState | None, list[tuple[Tensor, Tensor]]]:
    """The states at the ends (the second is None without a second run) and the sample, all checked.

    Raises:
        UserError: something can't be done as asked.
    """
    config = load_config(job.run, remedy=_REMEDY)
    data = config.data.load()
    images = part_of(data, job.split)
    count = job.samples if job.samples is not None else min(DEFAULT_SAMPLES, len(images))
    config2 = None if job.run2 is None else load_config(job.run2, remedy=_REMEDY)
    # In the wider type of both ends, which rounds neither.
    dtype = own_dtype(config) if config2 is None else torch.promote_types(own_dtype(config), own_dtype(config2))
    drawn = ProbeSample.draw(images, count).batches(Ranks(device), dtype, whole=False)
    batches = [(x, y) for x, y in drawn]
    state = restore_state(config, data, choose_checkpoint(job.run, job.checkpoint), device=device, dtype=dtype)
    if not state.phase.is_sum_over_samples:
        raise UserError(
            f"{job.run} stopped in the phase {state.phase.name}: its loss is of batches, not of samples; finish the run"
        )
    if job.run2 is None or config2 is None:
        return state, None, batches
    # The second run's data only gives its model the right shape: both ends are scored on the first run's sample.
    path2 = choose_checkpoint(job.run2, job.checkpoint)
    other = restore_state(config2, config2.data.load(), path2, device=device, dtype=dtype)
    shapes = [{name: tuple(p.shape) for name, p in s.model.named_parameters()} for s in (state, other)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{job.run} and {job.run2} hold different models: a line needs two of one shape")
    return state, other, batches


def _float_buffers(model: nn.Module) -> Named:
    """Copies of the model's floating-point buffers (running statistics), by name."""
    return {name: b.detach().clone() for name, b in model.named_buffers() if b.is_floating_point()}


@torch.no_grad()
def _move(model: nn.Module, centre: Named, directions: list[Named], point: tuple[float, float | None]) -> None:
    """Set the weights to w = centre + alpha·d₁ + beta·d₂, for ``point`` (alpha, beta).

    From the centre each time, so that rounding doesn't add up from point to point.
    """
    for name, p in model.named_parameters():
        p.copy_(centre[name])
        for distance, direction in zip(point, directions, strict=False):
            p.add_(direction[name], alpha=float(distance or 0.0))


@torch.no_grad()
def _set_buffers(model: nn.Module, first: Named, second: Named, alpha: float) -> None:
    """Set the running statistics to the first checkpoint's, or to those at ``alpha`` on the line to the second's."""
    # Beyond the line's ends an extrapolated variance can fall below 0.
    for name, buffer in model.named_buffers():
        if name in second:
            mixed = first[name] + alpha * (second[name] - first[name])
            buffer.copy_(mixed.clamp_min(0.0) if name.endswith("running_var") else mixed)
        elif name in first:
            buffer.copy_(first[name])


@torch.no_grad()
def _estimate_statistics(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Take the running statistics anew, as the mean over the sample's batches."""
    # BatchNorm alone is in training mode, so that dropout stays off. Without a momentum torch takes the plain mean of
    # all batches since the reset.
    layers = [m for m in model.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    if not layers:
        return
    kept = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        for x, _ in batches:
            model(x)
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum
            layer.eval()


@torch.no_grad()
def _scores(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean loss and top-1 accuracy in percent over the sample."""
    model.eval()
    loss, hits, samples = 0.0, 0, 0
    for x, y in batches:
        logits = model(x)
        loss += float(loss_sum(logits, y))
        hits += int((logits.argmax(dim=1) == y).sum())
        samples += len(y)
    return loss / samples, 100 * hits / samples


def _write(
    job: LandscapeJob,
    state: RestoredState,
    rows: list[tuple[float, float | None, float, float]],
    samples: int,
    seconds: float,
) -> None:
    """Append the rows (alpha, beta, loss, accuracy) of a slice to the run's table ``landscape``."""
    alpha, beta, loss, acc1 = (list(column) for column in zip(*rows, strict=True))
    common = {
        "step": state.step,
        "measurement_id": job.name,
        "created_at": now(),
        "phase": state.phase.name,
        "samples": samples,
        "split": job.split,
        "bn_mode": job.bn_mode,
        "seed": job.seed,
        "precision": str(next(state.model.parameters()).dtype).removeprefix("torch."),
        "seconds": seconds,
    }
    if job.run2 is not None:
        common["run2"] = Manifest.load(job.run2).run_id
    columns = {name: [value] * len(rows) for name, value in common.items()}
    writer = TraceWriter(job.run, Manifest.load(job.run).run_id)
    writer.append("landscape", {**columns, "alpha": alpha, "beta": beta, "loss": loss, "acc1": acc1})
    writer.flush()
