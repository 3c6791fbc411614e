"""The passes over a sample that give the inner products of which signal and noise are made."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tvlars_probe.curvature.agreeing import on_all_ranks
from tvlars_probe.curvature.operators import free_memory
from tvlars_probe.errors import NonFiniteLossError, UserError
from tvlars_probe.noise.factors import BLOCK, Formed, wide
from tvlars_probe.noise.gradients import ByLayers, Gradients, OneByOne, doubtful

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.batches import Batch
    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.noise.cutting import Stretched
    from tvlars_probe.noise.gradients import Way

    Floats = NDArray[np.float64]
    Report = Callable[[str], None]

MOST_AT_ONCE = 256
"""Most pieces of a chunk."""

OF_GRAM = 32
"""Pieces whose inner products with one another are taken."""


class Chunk(NamedTuple):
    """Samples whose gradients are held at once."""

    stretch: Stretched
    first: int
    last: int

    @property
    def batch(self) -> Batch:
        """The samples."""
        return self.stretch.take(self.first, self.last)


@dataclass(kw_only=True)
class InnerProducts:
    """Inner products of the pieces' gradients, of the pieces of all ranks in the order of the ranks.

    Attributes:
        names: of the parameters on which the loss depends.
        squares: |h_k|², shape (parameters, m).
        products: ⟨h_k, h̄⟩, shape (parameters, m).
        square_of_mean: |h̄|², shape (parameters,).
        gram: ⟨h_i, h_j⟩ of the first pieces, shape (parameters, c, c).
        along: ⟨h_k, v_j⟩ over all parameters, shape (m, vectors).
        loss: mean over the pieces.
        notes: sentences on the way that was taken.
    """

    names: tuple[str, ...]
    squares: Floats
    products: Floats
    square_of_mean: Floats
    gram: Floats
    along: Floats
    loss: float
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class Passes:
    """One rank's part of the measurement; use it in `Objective.held`.

    Attributes:
        objective: f.
        parameters: that require a gradient, by name.
        shards: the ranks.
        stretches: this rank's samples, which are cut into chunks.
        way: how gradients are taken.
        budget: bytes; None for half of what is free.
        vectors: orthonormal directions, by parameter.
        report: called with a line about what is being computed.
    """

    objective: Objective
    parameters: Mapping[str, Tensor]
    shards: Ranks
    stretches: Sequence[Stretched]
    way: Way
    budget: int | None = None
    vectors: Sequence[Mapping[str, Tensor]] = ()
    report: Report = lambda _: None
    notes: dict[str, None] = field(default_factory=dict)

    def run(self) -> InnerProducts:
        """Make the passes.

        Raises:
            NonFiniteLossError: the loss isn't finite.
            UserError: the budget is too small; the loss depends on none of the parameters.
        """
        chunks = on_all_ranks(self.shards, self._plan)
        first = on_all_ranks(self.shards, lambda: _First(self, chunks))
        if self.shards.any(bool(first.doubts)):  # once more, by another way, which takes more memory
            if isinstance(self.way, ByLayers):
                self.way.set_apart(first.doubts)
            chunks = on_all_ranks(self.shards, self._plan)
            first = on_all_ranks(self.shards, lambda: _First(self, chunks))
        m = int(self.shards.sum(torch.tensor([first.pieces], device=self.objective.device))[0])
        loss = self.shards.sum(first.loss[None])[0].item() * self._scale / m
        if not np.isfinite(loss):
            raise NonFiniteLossError(f"the model's loss on the sample is {loss}: there is no gradient to measure")
        names = self._used(first)
        mean = {name: self._mean(first, name, m) for name in names}
        second = on_all_ranks(self.shards, lambda: self._second(first, chunks, mean))
        square = [Formed(mean[name].reshape(1, -1)).squares().item() for name in names]
        nothing = torch.zeros(first.pieces, dtype=first.loss.dtype)
        gathered = self._gathered(
            [first.squares.get(name, nothing) for name in names]
            + [second.get(name, nothing) for name in names]
            + [*first.along.T]
        )
        gram = self.shards.from_first({name: first.gram.get(name) for name in names})
        size = max((len(g) for g in gram.values() if g is not None), default=0)
        return InnerProducts(
            names=names,
            squares=gathered[: len(names)],
            products=gathered[len(names) : 2 * len(names)],
            square_of_mean=np.array(square),
            gram=np.stack([np.zeros((size, size)) if g is None else g for g in (gram[name] for name in names)]),
            along=gathered[2 * len(names) :].T,
            loss=loss,
            notes=tuple(self.notes),
        )

    @property
    def _scale(self) -> float:
        return self.way.scale  # type: ignore[attr-defined, no-any-return]

    def _plan(self) -> list[Chunk]:
        """Cut the samples into chunks that fit the budget."""
        size = min(self._affordable(), MOST_AT_ONCE) * self.way.piece
        return [
            Chunk(stretch, start, start + size) for stretch in self.stretches for start in range(0, len(stretch), size)
        ]

    def _affordable(self) -> int:
        """Pieces of a chunk, by the memory that a few of them take."""
        weights = sum(p.nbytes for p in self.parameters.values())
        model = [*self.objective.model.parameters(), *self.objective.model.buffers()]
        # The copy of the model, the gradient and its mean, the vectors, and what is formed beside what is held.
        held = sum(t.nbytes for t in model) + (3 + len(self.vectors)) * weights + 16 * BLOCK
        budget = free_memory(self.objective.device, self.shards.world_size) // 2 if self.budget is None else self.budget
        each = self._bytes_of_a_piece()
        count = (budget - held) // each
        if count < 1:
            raise UserError(
                f"a memory budget of {budget:,} bytes is too small: the model takes {held:,}, and each "
                f"{'sample' if self.way.piece == 1 else 'piece'} about {each:,} (allowed: "
                f"{held + each:,} or more; the more, the faster)"
            )
        return count

    def gradients(self, chunk: Batch, *, whole: bool = False) -> Gradients:
        """The gradients of a chunk's pieces, one after the other where `torch.func.vmap` refuses the model."""
        if not isinstance(self.way, ByLayers):
            return self.way.gradients(chunk)
        try:
            return self.way.gradients(chunk, whole=whole)
        except Exception as error:
            way = OneByOne(self.objective, self.parameters, self._scale, 1)
            found = way.gradients(chunk)  # what fails here, too, is the model's own error
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.notes[f"samples were taken one after the other, as torch.func.vmap refuses the model: {text}"] = None
            self.way = way
            return found

    def _bytes_of_a_piece(self) -> int:
        """Memory that a piece takes, by the gradients of two."""
        found = self.gradients(self.stretches[0].take(0, 2 * self.way.piece), whole=True)
        # The sum alone is kept, for `doubtful`: the gradients take as much as those of a chunk.
        self._alone = Gradients(found.count, found.loss, found.total if isinstance(self.way, ByLayers) else {})
        return max(found.bytes, 1)

    def doubtful(self, first: Gradients) -> set[str]:
        """The tensors whose gradients can't be taken apart by layers, by what the first chunk gave."""
        alone = self._alone
        if isinstance(self.way, ByLayers) and first.count <= alone.count:  # of as many samples nothing would be told
            found = self.gradients(self.stretches[0].take(0, 1), whole=True)
            alone = Gradients(1, found.loss, found.total)
        if not isinstance(self.way, ByLayers) or not first.loss.isfinite():
            return set()
        # Samples that weigh nothing tell nothing either.
        return doubtful(alone, first, self.parameters) if alone.total else {*first.factors}

    def _used(self, first: _First) -> tuple[str, ...]:
        """The parameters on which the loss depends, on any rank."""
        flags = torch.tensor([float(name in first.total) for name in self.parameters], device=self.objective.device)
        used = self.shards.sum(flags).tolist()
        names = tuple(name for name, count in zip(self.parameters, used, strict=True) if count)
        if not names:
            raise UserError("the loss depends on none of the parameters chosen")
        return names

    def _mean(self, first: _First, name: str, pieces: int) -> Tensor:
        """h̄ of one parameter over all ranks."""
        total = first.total.pop(name, None)
        if total is None:
            total = torch.zeros_like(self.parameters[name])
        return self.shards.sum(total.contiguous()).div_(pieces)

    def _second(self, first: _First, chunks: Sequence[Chunk], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """⟨h_k, h̄⟩ of this rank's pieces, by parameter."""
        found: dict[str, list[Tensor]] = {name: [] for name in mean}
        for index, chunk in enumerate(chunks):
            self.report(f"inner products with the mean, chunk {index + 1} of {len(chunks)}")
            each = first.kept[index] if first.kept else self.gradients(chunk.batch)
            zeros = wide(torch.zeros(each.count))
            for name, direction in mean.items():
                factor = each.factors.get(name)
                found[name].append(zeros if factor is None else factor.along(direction).cpu())
            del each, factor
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _gathered(self, rows: list[Tensor]) -> Floats:
        """Formed of this rank's pieces, with those of the other ranks behind or before them."""
        mine = torch.stack(rows).cpu()
        counts = [int(count) for count in self.shards.gather(torch.tensor([mine.shape[1]]))]
        padded = torch.nn.functional.pad(mine, (0, max(counts) - mine.shape[1]))
        parts = self.shards.gather(padded)
        return np.concatenate([part[:, :count].numpy() for part, count in zip(parts, counts, strict=True)], axis=1)


class _First:
    """The first pass over this rank's chunks: squares, the sum, and what directions known beforehand give."""

    def __init__(self, passes: Passes, chunks: Sequence[Chunk]) -> None:
        self.total: dict[str, Tensor] = {}
        self.gram: dict[str, Floats] = {}
        self.doubts = set[str]()
        self.kept: list[Gradients] = []
        squares: dict[str, list[Tensor]] = {}
        along: list[Tensor] = []
        counts: list[int] = []
        self.loss = wide(torch.zeros((), device=passes.objective.device))
        for index, chunk in enumerate(chunks):
            passes.report(f"gradients, chunk {index + 1} of {len(chunks)}")
            each = passes.gradients(chunk.batch)
            self.loss += each.loss
            before = sum(counts)
            for name, factor in each.factors.items():
                there = squares.setdefault(name, [wide(torch.zeros(before))] if before else [])
                there.append(factor.squares().cpu())
                self.total[name] = each.total[name].add_(self.total[name]) if name in self.total else each.total[name]
            for name in squares.keys() - each.factors.keys():
                squares[name].append(wide(torch.zeros(each.count)))
            if not index:
                self.doubts = passes.doubtful(each)
                some = min(OF_GRAM, each.count)
                self.gram = {
                    name: factor.few(some).gram().cpu().double().numpy() for name, factor in each.factors.items()
                }
            along.append(_along(each, passes.vectors))
            counts.append(each.count)
            if self.doubts:
                break
            if len(chunks) == 1:  # needed once more, with the mean
                self.kept = [each]
            del each  # before the next chunk's, which take as much
        self.pieces = sum(counts)
        self.squares = {name: torch.cat(parts) for name, parts in squares.items()}
        self.along = torch.cat(along)


def _along(each: Gradients, vectors: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """⟨h_k, v_j⟩ over all parameters, shape (n, vectors)."""
    found = wide(torch.zeros(each.count, len(vectors)))
    for (j, vector), (name, factor) in itertools.product(enumerate(vectors), each.factors.items()):
        if name in vector:
            found[:, j] += factor.along(vector[name]).cpu()
    return found
