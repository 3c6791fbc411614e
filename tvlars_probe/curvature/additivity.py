"""Whether a loss is a mean over samples: whether batches of any size, each by its weight, give one and the same f.

`torch.nn.CrossEntropyLoss` with class weights divides by the sum of its batch's weights, with ``ignore_index`` by the
targets that are left, and ``reduction="sum"`` by nothing. Such batches by their numbers of samples give an f, and a
Hessian, that depend on how the sample is cut. So w(A ∪ B)·ℓ(A ∪ B) = w(A)·ℓ(A) + w(B)·ℓ(B) is tested for parts A and B
of the batches; ℓ is the loss, w the weight.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tvlars_probe.curvature.batches import joined, parts, take
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tvlars_probe.curvature.batches import Batch

DRAWN = 8
"""Parts of two samples that `mixture` draws."""

LEAST_TOLERANCE = 1e-5
"""Share of the loss by which the two sides may differ; float32 rounding was at most 3e-7 on the networks tried."""

SLIGHTLY = 0.05
"""Below this share of the loss a difference may be a device's rounding, and is looked at once more."""


@dataclass(frozen=True, slots=True)
class Point:
    """Weights at which sides are compared: the model's own w, or gain·(w + spread·‖w‖/√n·ξ)/√(1 + spread²).

    ξ is standard normal. Where the losses of samples are all alike, as at a perfect fit or behind a head of zeros, a
    sum adds up like a mean; at such weights they differ.
    """

    spread: float
    gain: float = 1.0
    seed: int = 0

    @property
    def is_last(self) -> bool:
        """Whether these are the model's own weights, which are tried last."""
        return not self.spread


POINTS = (Point(1.0, 3.0), Point(1.0, 1.0, 1), Point(1.0, 3.0, 2), Point(0.1, 1.0, 3), Point(0.0))
"""The points in the order in which they are tried: the next one where the losses at the last told too little."""


def mixture(batches: Sequence[Batch], seed: int = 0) -> list[Batch]:
    """Some parts of two samples each, drawn from random batches: no part is like the next, as large parts may be."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(DRAWN if batches else 0):
        batch = batches[int(torch.randint(len(batches), (), generator=generator))]
        found.append(take(batch, torch.randperm(len(batch[0]), generator=generator)[:2].tolist()))
    return found


def whole(batches: Sequence[Batch]) -> list[Batch]:
    """The parts of all batches in their order: a chain that covers the sample, across the bounds of its batches."""
    return [part for batch in batches for part in parts(batch)]


class _Weighed(NamedTuple):
    """A batch with its w and its ℓ."""

    batch: Batch
    weight: float
    loss: float

    @property
    def share(self) -> float:
        """w·ℓ."""
        return self.weight * self.loss


@dataclass(kw_only=True)
class Additivity:
    """Compares neighbours in chains of parts, alone and joined, at the weights that a model has at the moment.

    Attributes:
        chains: lists of parts.
        loss_of: ℓ of a batch.
        weight_of: w of a batch.
        types: those in which the losses are computed.
        is_weighted: whether w is the caller's own.
    """

    chains: Sequence[Sequence[Batch]]
    loss_of: Callable[[Batch], Tensor]
    weight_of: Callable[[Batch], float]
    types: set[torch.dtype]
    is_weighted: bool = False
    _is_last: bool = field(default=False, init=False)
    _is_finite: bool = field(default=True, init=False)

    def passes_at(self, point: Point) -> bool:
        """Whether all losses add up, which is enough; False where some aren't finite, or all are alike to rounding.

        Raises:
            UserError: they don't add up.
        """
        self._is_last, self._is_finite, seen = point.is_last, True, list[float]()
        for chain in self.chains:
            found = [self._measured(batch) for batch in chain]
            finite = [abs(part.loss) for part in found if part.weight and math.isfinite(part.loss)]
            typical = statistics.median(finite or [0.0])
            for first, second in pairwise(found):
                self._compare(first, second, typical)
            seen += [part.loss for part in found if part.weight]
        if not seen:
            raise UserError(
                "weights= gives 0 for all parts of the batches, and more for whole ones: it must be a sum over samples"
            )
        return self._is_finite and max(seen) - min(seen) > 10 * rounding(self.types) * max(map(abs, seen))

    def _compare(self, first: _Weighed, second: _Weighed, typical: float) -> None:
        both = joined(first.batch, second.batch)
        if both is None:
            return
        whole, weight = self._measured(both), first.weight + second.weight
        sizes = f"{len(first.batch[0])} samples", f"{len(second.batch[0])} others"
        if abs(whole.weight - weight) > 10 * rounding(self.types) * weight:
            raise UserError(
                f"weights= gives {first.weight:g} for {sizes[0]}, {second.weight:g} for {sizes[1]}, but "
                f"{whole.weight:g} for a batch of them together: it must be a sum over the batch's samples"
            )
        if not whole.weight or not math.isfinite(whole.loss):
            return
        expected = (first.share + second.share) / whole.weight
        size = max(abs(first.loss), abs(second.loss), abs(whole.loss), typical)
        limit = rounding(self.types) * size
        if math.isfinite(expected):
            off = abs(whole.loss - expected)
            if off <= limit or (off < SLIGHTLY * size and self._add_up(first.batch, second.batch, limit)):
                return
        elif not self._is_last:
            return  # random weights may be the reason; the model's own, which are tried last, aren't
        gap = (
            f"of {sizes[0]} it is {first.loss:.6g}, of {sizes[1]} {second.loss:.6g}, but of them together "
            f"{whole.loss:.6g}, not {expected:.6g}" + ("" if self._is_last else " (at random weights)")
        )
        if abs((again := self._loss(both)) - whole.loss) > rounding(self.types) * abs(whole.loss):
            gap = (
                f"of the same samples it is {whole.loss:.6g}, then {again:.6g}: it is random, or the model has a memory"
            )
        raise refusal(gap, is_weighted=self.is_weighted)

    def _measured(self, batch: Batch) -> _Weighed:
        weight = self.weight_of(batch)
        # What weighs nothing may have no loss: all of its targets may be ignored, and their mean is NaN.
        return _Weighed(batch, weight, self._loss(batch) if weight else 0.0)

    def _add_up(self, a: Batch, b: Batch, limit: float) -> bool:
        """Whether ab and ba together have the loss of aa and bb: four batches of one size.

        Devices choose their algorithms, and so their rounding, by the size of a batch. A sum over samples is the same
        on both sides, and so is its rounding.
        """
        size = min(len(a[0]), len(b[0]))
        a, b = take(a, range(size)), take(b, range(size))
        four = [tuple(torch.cat(two) for two in zip(*pair, strict=True)) for pair in ((a, b), (b, a), (a, a), (b, b))]
        weights = [self.weight_of(batch) for batch in four]
        if not all(weights):
            return False
        ab, ba, aa, bb = (w * self._loss(batch) for w, batch in zip(weights, four, strict=True))
        return abs(ab + ba - aa - bb) <= limit * (weights[0] + weights[1])

    def _loss(self, batch: Batch) -> float:
        try:
            loss = self.loss_of(batch)
        except UserError:
            raise
        except Exception:
            # A matrix, say, isn't positive definite at random weights. An error that doesn't come back is another.
            if self._is_last or not self._fails(batch):
                raise
            self._is_finite = False
            return math.nan
        self.types.add(loss.dtype)
        value = loss.item()
        self._is_finite = self._is_finite and math.isfinite(value)
        return value

    def _fails(self, batch: Batch) -> bool:
        try:
            self.loss_of(batch)
        except Exception:
            return True
        return False


def refusal(gap: str, *, is_weighted: bool) -> UserError:
    """The error for a loss that isn't a mean, or not by the weights given."""
    what = "the mean by weights= over its samples" if is_weighted else "the mean over its samples"
    return UserError(
        f"the loss of a batch isn't {what}, so that it would depend on how the sample is cut into batches: {gap}. "
        "Give the sample as one batch, or a loss that is a mean (reduction='mean'), or by weights= (of --model a "
        "fourth value) what a batch counts: lambda batch: class_weights[batch[1]].sum() with class weights, "
        "lambda batch: (batch[1] != -100).sum() where targets are ignored"
    )


def rounding(dtypes: Iterable[torch.dtype]) -> float:
    """The share of a loss by which sides may differ: four units in the last place of the coarsest type."""
    units = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(LEAST_TOLERANCE, 4 * max(units))


@torch.no_grad()
def move(parameters: Iterable[Tensor], point: Point) -> None:
    """Set parameters, in place, to a point; a tensor of zeros is taken for one of norm 0.1·√n."""
    for number, p in enumerate(parameters):
        if point.is_last or not p.numel() or not (p.is_floating_point() or p.is_complex()):
            continue
        wide = torch.complex64 if p.is_complex() else torch.float32
        size = torch.linalg.vector_norm(p.to(wide)) / math.sqrt(p.numel())
        generator = torch.Generator(p.device).manual_seed((point.seed << 32) + number)
        noise = torch.randn(p.shape, generator=generator, dtype=wide, device=p.device)
        noise *= torch.where(size > 0, size, 0.1)
        p.data.add_(noise.to(p.dtype), alpha=point.spread).mul_(point.gain / math.sqrt(1 + point.spread**2))
