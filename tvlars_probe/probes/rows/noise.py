"""Gradient noise from the pieces of steps: what a flush makes of them, by one sum over the ranks.

A piece i of n_i samples added h_i to the gradient: the gradient G_i of its own mean loss, times its weight w_i, times a
factor that all pieces share (a gradient scaler's, the number of ranks). DistributedDataParallel takes the mean over W
ranks. With c_i = w_i/Σw::

    h_i = c_i·W·G_i/u          g = Σ c_i·G_i = u·Σ h_i/W          Σ c_i·|G_i|² = u²·Σw/W²·Σ |h_i|²/w_i

u is 1 unless a gradient scaler is at work. It is measured: a check sum, linear in the gradient, is taken of each h_i
and of the gradient that ``step()`` used, which may have been clipped by a factor that is known. Where a tensor's check
sums don't fit, that gradient was made of something else than these pieces, and the tensor has no row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tvlars_probe.admission.names import encodable
from tvlars_probe.noise.estimates import unbiased
from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.readers.pieces import COUNTS
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.rows.buffer import Drained, StepRow

    Floats = NDArray[np.float64]

CLOSE = 1e-3
"""Relative difference up to which check sums and factors count as equal."""

REASONS = {
    "sizes": "the sizes of their pieces aren't known: tell rec.log(samples=...), or rec.note_piece(samples=...)",
    "weights": (
        "their pieces differ in size, or their number from rank to rank, and how much each weighs isn't known: tell "
        "rec.note_piece(samples=n, weight=...) before each backward pass, or give all pieces one size"
    ),
    "single": "they had one piece only",
    "passes": (
        "there were more backward passes than forward passes of the model, so that not each is a piece of the batch: "
        "add up the losses of one forward pass, and call backward() once (checkpoint with use_reentrant=False)"
    ),
    "contradiction": (
        "rec.log(samples=...) told another number of samples than their pieces seem to have, by the first dimension of "
        "what the model was given: tell rec.note_piece(samples=...) of each piece"
    ),
    "unlike": "the optimizers' updates are of batches of different size; tensors have their own rows",
    "scale": (
        "the gradient was scaled by a factor that isn't known: clip by rec.clip_grad_norm_, or tell "
        "rec.log(clip_scale=...)"
    ),
    "other": (
        "the gradient that step() used isn't the mean of the pieces' gradients (a scaler skipped a step, there were "
        "other backward passes, or the gradient was changed)"
    ),
}
"""Why steps have no noise, and what to do about it."""


def noise_notes(lacking: Mapping[str, int], earlier: Sequence[str]) -> list[str]:
    """The notes ``earlier`` and, in place of older such, how many steps of the whole run have no noise, and why.

    Args:
        lacking: number of steps by the key of `REASONS`.
        earlier: notes of the manifest.
    """
    about = "the gradient's noise isn't known of "
    told = {
        REASONS[reason]: f"{about}{number:,} recorded step(s): {REASONS[reason]}" for reason, number in lacking.items()
    }
    kept = [note for note in earlier if not (note.startswith(about) and any(map(note.endswith, told)))]
    return [*kept, *told.values()]


_FAULTS = ("weights", "passes", "contradiction")
"""Reasons that are known of all tensors of an optimizer."""

_FLAGS = len(_FAULTS) + 2
"""Columns behind the counts: the faults; the rank's number of pieces, 0 if their weights were told; and its square."""


@dataclass(frozen=True, slots=True)
class NoiseOfSteps:
    """The estimates of some steps.

    Attributes:
        gradient_square: |G|², (steps, parameters); NaN where there is no estimate.
        noise_trace: tr Σ, the same.
        active: whether the tensor had a gradient, (steps, parameters).
        pieces: number of pieces of the optimizer's update, (steps, parameters); NaN where there were none.
        sizes: samples or tokens of all these pieces, (steps, parameters).
        of_tokens: whether sizes count tokens, (steps, parameters).
        reasons: number of recorded steps without an estimate of the whole, by the key of `REASONS`.
    """

    gradient_square: Floats
    noise_trace: Floats
    active: NDArray[np.bool_]
    pieces: Floats
    sizes: Floats
    of_tokens: NDArray[np.bool_]
    reasons: Counter[str]

    def whole(self, values: Floats) -> Floats:
        """The sum over all tensors with a gradient, by step; NaN where one has no estimate, or one of another batch."""
        total = np.where(self.active, values, 0.0).sum(axis=1)
        return np.where(self.active.any(axis=1) & ~np.isnan(self.batches), total, np.nan)

    @property
    def batches(self) -> Floats:
        """Samples or tokens of the batch, by step; NaN where several optimizers had different ones."""
        return np.where(self._is_alike(self.pieces) & self._is_alike(self.of_tokens), self._of_all(self.sizes), np.nan)

    def first_active(self, step: int) -> int:
        """A tensor with a gradient."""
        return int(np.argmax(self.active[step]))

    def _of_all(self, values: Floats) -> Floats:
        first = values[np.arange(len(values)), np.argmax(self.active, axis=1)] if values.size else np.zeros(len(values))
        return np.where(self._is_alike(values), first, np.nan)

    def _is_alike(self, values: Any) -> NDArray[np.bool_]:
        """Whether all tensors with a gradient have the same value, by step."""
        high = np.where(self.active, values, -np.inf).max(axis=1, initial=-np.inf)
        low = np.where(self.active, values, np.inf).min(axis=1, initial=np.inf)
        return np.asarray(low >= high)


def noise_of(drained: Drained, ranks: Ranks, rounding: Floats, clips: Floats) -> NoiseOfSteps | None:
    """Estimate |G|² and tr Σ of the drained steps. Every rank calls it, in the same step.

    Args:
        drained: this rank's rows.
        ranks: the ranks of the run.
        rounding: unit roundoff of each tensor.
        clips: the factor by which each step's gradient was clipped; NaN where it isn't known.

    Returns:
        the estimates, of use on the rank that reads norms; None where the rows have no pieces.
    """
    due = [row.due for row in drained.rows]  # alike on all ranks
    if not any(due):
        return None
    shape = len(drained.rows), drained.values.shape[2]
    values, counts = _tables(drained)
    summed = torch.from_numpy(np.concatenate([values[:, :2].reshape(len(values), -1), counts], axis=1))
    summed = ranks.sum(summed.to(ranks.device, accumulation_dtype(ranks.device))).cpu().double()
    table = summed.numpy()
    squares, sums = table[:, : 2 * shape[1]].reshape(shape[0], 2, shape[1]).swapaxes(0, 1)
    of_optimizers = table[:, 2 * shape[1] :].reshape(shape[0], -1, len(COUNTS) + _FLAGS)
    used = values[:, 2]
    # By parameter: what is known of the pieces of its optimizer.
    spans = np.diff(drained.offsets)
    known = np.repeat(of_optimizers, spans, axis=1).transpose(2, 0, 1)
    k, weight, by_size, square_by_size, sizes, of_tokens, *flags, alike, square = known
    faults = {name: flag > 0 for name, flag in zip(_FAULTS, flags, strict=True)}
    # A rank of fewer pieces may have divided by its own number, or by that of the others.
    faults["weights"] |= square * ranks.world_size > alike**2
    active = np.array([row.active & row.recorded for row in drained.rows], dtype=bool).reshape(shape)
    with np.errstate(all="ignore"):
        sums = sums / ranks.world_size
        clip = np.where(np.isnan(clips), 1.0, clips)[:, None]
        factor, fits = _factor(sums, used, np.sqrt(squares * weight) / ranks.world_size, rounding, active)
        scale = factor / clip
        is_known = _is_close(scale, 1.0) | _is_scaler(scale)
        # Or a loop has divided the gradient by the number of pieces, or of samples: of this rank's, or of all.
        for number in (k, k / ranks.world_size, sizes, sizes / ranks.world_size):
            is_known = is_known | _is_close(scale * number, 1.0)
        scale = np.where(is_known, np.where(_is_close(scale, 1.0), 1.0, scale), np.nan)
        mean_square = scale**2 * weight / ranks.world_size**2 * squares
        square = (drained.values[:, COLUMNS.index("grad_norm")] / clip) ** 2
        signal, trace = unbiased(mean_square, square, by_size / weight, square_by_size / weight**2)
        bad = ~fits | (k < 2) | np.any([*faults.values()], axis=0) | ~active
        bad |= ~np.isfinite(signal) | ~np.isfinite(trace)  # of a piece that weighs nothing, but has a gradient
        signal, trace = np.where(bad, np.nan, signal), np.where(bad, np.nan, trace)
    found = NoiseOfSteps(signal, trace, active, k, sizes, of_tokens > 0, reasons=Counter())
    whole, batches = found.whole(trace), found.batches
    for i in np.flatnonzero(np.array(due) & np.isnan(whole) & active.any(axis=1)):
        at = {name: fault[i] for name, fault in faults.items()}
        found.reasons[
            _reason(k[i], by_size[i], at, fits[i], scale[i], active[i], is_unlike=bool(np.isnan(batches[i])))
        ] += 1
    return found


def _tables(drained: Drained) -> tuple[Floats, Floats]:
    """Values (steps, 3, parameters), and counts with the faults (steps, optimizers·(len(COUNTS) + _FLAGS))."""
    optimizers = len(drained.offsets) - 1
    values = np.full((len(drained.rows), 3, drained.values.shape[2]), np.nan)
    counts = np.full((len(drained.rows), optimizers, len(COUNTS) + _FLAGS), np.nan)
    for i, row in enumerate(drained.rows):
        if row.pieces is None:
            continue
        values[i], counts[i, :, : len(COUNTS)] = row.pieces.values.cpu().numpy(), row.pieces.counts.cpu().numpy()
        for one, (unclear, excess, guessed, weighted) in zip(counts[i], row.pieces.flags, strict=True):
            contradicts = guessed and row.samples is not None and row.samples != one[4]
            _count(one, row)
            alike = 0.0 if weighted else one[0]
            one[len(COUNTS) :] = unclear, excess, contradicts, alike, alike**2
    return values, counts.reshape(len(counts), -1)


def _count(sums: Floats, row: StepRow) -> None:
    """Complete the sums `COUNTS` of an optimizer's pieces by the numbers that the loop told of the whole step."""
    number, weight, size, of_tokens = sums[0], sums[1], sums[4], sums[5]
    told, unit = (row.samples, 0.0) if row.tokens is None else (row.tokens, 1.0)
    if not told or told < number:
        return
    if np.isnan(size):
        # No sizes were seen: the pieces are taken to be of one size, which is a sample at least.
        sums[2:6] = weight * number / told, weight**2 / told, told, unit
    elif unit and not of_tokens and size:
        # Samples were seen and tokens are what the loss is a mean over: each sample is taken to have as many.
        sums[2:6] = sums[2] * size / told, sums[3] * size / told, told, unit


def _factor(
    sums: Floats, used: Floats, norms: Floats, rounding: Floats, active: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """The factor between the pieces' mean and the gradient used, by step, and which tensors' check sums fit it.

    Args:
        sums: check sums of the pieces' mean, (steps, parameters).
        used: check sums of the gradient used.
        norms: √(Σw·Σ|h|²/w)/W, at least the norm of the pieces' mean: it bounds the check sums' rounding.
        rounding: unit roundoff of each tensor.
        active: whether the tensor had a gradient.
    """
    there = active & np.isfinite(sums) & np.isfinite(used)
    a, b = np.where(there, sums, 0.0), np.where(there, used, 0.0)
    scale = np.abs(a).max(axis=1, keepdims=True, initial=0.0)
    a = a / np.where(scale > 0, scale, 1.0)
    factor = ((a * b).sum(axis=1) / ((a * a).sum(axis=1) * np.where(scale > 0, scale, 1.0)[:, 0]))[:, None]
    slack = CLOSE * np.abs(used) + 64 * rounding * np.abs(factor) * norms
    return factor, there & (np.abs(used - factor * sums) <= slack)


def _is_close(values: Floats, target: float) -> NDArray[np.bool_]:
    """Whether values are ``target`` but for rounding."""
    return np.abs(values - target) <= CLOSE * target


def _is_scaler(scale: Floats) -> NDArray[np.bool_]:
    """Whether a factor is the inverse of a power of two, as a gradient scaler's are; 1/2 and 1/4 are others', too."""
    power = np.log2(scale)
    return (power <= -3 + CLOSE) & (np.abs(power - np.round(power)) <= CLOSE)


def _reason(
    k: Floats,
    by_size: Floats,
    faults: Mapping[str, NDArray[np.bool_]],
    fits: NDArray[np.bool_],
    scale: Floats,
    active: NDArray[np.bool_],
    *,
    is_unlike: bool,
) -> str:
    """The key of `REASONS` for a step."""
    if (k[active] < 2).any():
        return "single"
    for name, fault in faults.items():
        if fault[active].any():
            return name
    if np.isnan(by_size[active]).any():
        return "sizes"
    if fits[active].all() and np.isnan(scale).any():
        return "scale"
    return "unlike" if is_unlike and fits[active].all() else "other"


def noise_columns(
    found: NoiseOfSteps, first_step: int, names: Sequence[str], phases: Sequence[str], precisions: Sequence[str]
) -> Mapping[str, Any]:
    """The rows of the table ``noise``: of each step the whole model, then its tensors. {} where there are none.

    Args:
        found: the estimates.
        first_step: index of the first step.
        names: of the parameters.
        phases: of the steps.
        precisions: type of each parameter.
    """
    rows = [*_rows(found, names)]
    if not rows:
        return {}
    at, tensors, scopes, kinds, signal, trace = zip(*rows, strict=True)
    steps, places = np.array(at), (np.array(at), np.array(tensors))
    sizes, pieces, of_tokens = found.sizes[places], found.pieces[places], found.of_tokens[places]
    common = precisions[0] if len({*precisions}) == 1 else "mixed"
    return {
        "step": first_step + steps,
        "phase": [encodable(phases[i]) for i in at],
        "source": ["training"] * len(rows),
        "scope": [*map(encodable, scopes)],
        "scope_kind": kinds,
        "pieces": pieces.astype(np.int64),
        "piece_size": sizes / pieces,
        "unit": ["tokens" if one else "samples" for one in of_tokens],
        "samples": np.rint(sizes).astype(np.int64),
        "gradient_square": signal,
        "noise_trace": trace,
        "split": ["train"] * len(rows),
        "bn_mode": ["train"] * len(rows),
        "precision": [common] * len(rows),
    }


def _rows(found: NoiseOfSteps, names: Sequence[str]) -> Iterator[tuple[int, int, str, str, float, float]]:
    signals, traces = found.whole(found.gradient_square), found.whole(found.noise_trace)
    for i, (signal, trace) in enumerate(zip(signals, traces, strict=True)):
        if np.isfinite(signal) and np.isfinite(trace):
            yield i, found.first_active(i), "all", "all", signal, trace
        for j in np.flatnonzero(np.isfinite(found.gradient_square[i]) & np.isfinite(found.noise_trace[i])).tolist():
            yield i, j, names[j], "tensor", found.gradient_square[i, j], found.noise_trace[i, j]
