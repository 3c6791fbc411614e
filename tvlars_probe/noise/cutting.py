"""The sample, cut into the pieces whose gradients are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.agreeing import on_all_ranks
from tvlars_probe.curvature.batch_norm import batch_norms, is_our_own
from tvlars_probe.curvature.batches import as_batches, consecutive
from tvlars_probe.curvature.objective import Objective, is_supervised
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from tvlars_probe.curvature.batches import Batch, Data
    from tvlars_probe.curvature.objective import Compute, Weights


def joins_samples(bn_mode: str, model: nn.Module, *, is_sum_over_samples: bool = True) -> bool:
    """Whether a batch joins its samples, so that pieces have statistics, or a loss, of their own."""
    return not is_sum_over_samples or (bn_mode == "train" and bool(batch_norms(model)))


def objective_of(
    model: nn.Module,
    compute: Compute,
    data: Data,
    *,
    bn_mode: str = "eval",
    shards: Ranks,
    weights: Weights | None = None,
    is_sum_over_samples: bool = True,
) -> Objective:
    """The objective of which `tvlars_probe.noise.measuring.noise_of` takes the samples apart.

    Its arguments are those of `Objective`. One batch is given to it in two halves: what is taken apart is first tested
    to be a mean over samples. Where batches join their samples, the objective is this rank's alone: it holds the model,
    and each piece is a batch of its own.

    Raises:
        UserError: as `Objective` does.
    """
    given = as_batches(data, pairs=is_supervised(compute))
    if joins_samples(bn_mode, model, is_sum_over_samples=is_sum_over_samples):

        def build() -> Objective:
            whole = tuple(torch.cat(tensors) for tensors in zip(*given, strict=True))
            # Our synchronised layers take them over all ranks, on each of which a piece then has a part.
            are_ours = any(map(is_our_own, batch_norms(model)))
            return Objective(
                model,
                compute,
                whole,
                bn_mode=bn_mode,
                weights=weights,
                is_sum_over_samples=is_sum_over_samples,
                statistics=shards if bn_mode == "train" and are_ours else None,
            )

        return on_all_ranks(shards, build)
    if len(given) == 1 and (half := len(given[0][0]) // 2):
        given = [consecutive(given[0], 0, half), consecutive(given[0], half, len(given[0][0]))]
    return Objective(model, compute, given, bn_mode=bn_mode, shards=shards, weights=weights)


@dataclass(eq=False)
class Stretched:
    """Neighbouring batches of one form, as if they were one.

    Attributes:
        batches: the batches.
        samples: how many of their samples, from the first on, are taken.
    """

    batches: list[Batch]
    samples: int

    def __len__(self) -> int:
        return self.samples

    def take(self, first: int, last: int) -> Batch:
        """The samples ``first`` to ``last`` − 1, as far as there are so many."""
        found, start, last = [], 0, min(last, self.samples)
        for batch in self.batches:
            n = len(batch[0])
            if first < start + n and last > start:
                found.append(consecutive(batch, max(first - start, 0), min(last - start, n)))
            start += n
        return found[0] if len(found) == 1 else tuple(torch.cat(tensors) for tensors in zip(*found, strict=True))


def stretches_of(batches: Sequence[Batch]) -> list[Stretched]:
    """The batches, those of one form together."""
    found: list[Stretched] = []
    for batch in batches:
        n = len(batch[0])
        if found and _form(found[-1].batches[0]) == _form(batch):
            found[-1].batches.append(batch)
            found[-1].samples += n
        else:
            found.append(Stretched([batch], n))
    return found


def _form(batch: Batch) -> list[tuple[float, torch.Size, torch.dtype]]:
    return [(len(t) / len(batch[0]), t.shape[1:], t.dtype) for t in batch]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A sample in pieces.

    Attributes:
        stretches: this rank's samples, of which each stretch holds whole pieces.
        shards: the ranks that hold pieces. Where a piece has a part on every rank, each rank sees all pieces: then
            it is this rank alone.
        piece: samples of a piece; None for single samples.
        own: those of them that are on this rank.
        joined: takes the mean over ranks of a gradient or loss, where a piece has a part on every rank.
        notes: a sentence on the samples that are left over.
    """

    stretches: list[Stretched]
    shards: Ranks
    piece: int | None
    own: int = 1
    joined: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, objective: Objective, shards: Ranks, piece: int | None) -> Cut:
        """Cut the sample of an objective into pieces of so many samples.

        Raises:
            UserError: pieces are needed, or others; there are too few of them.
        """
        check(objective, piece)
        is_spread = shards.world_size > 1 and _sums_over_ranks(objective)
        size = piece or 1
        if is_spread and size % shards.world_size:
            raise UserError(
                f"pieces of {size} samples can't be spread over {shards.world_size} ranks, as the loss or BatchNorm "
                f"that sums over ranks needs them: give a multiple of {shards.world_size}"
            )
        own = size // shards.world_size if is_spread else size
        stretches = stretches_of(objective.batches)
        kept = [len(stretch) // own * own for stretch in stretches]
        samples = int(shards.sum(torch.tensor([sum(len(batch[0]) for batch in objective.batches)]).to(shards.device)))
        fewest = -shards.agree([-sum(kept) // own])[0]
        if is_spread:  # one batch; every rank must make as many passes as the others
            kept = [fewest * own]
        for stretch, n in zip(stretches, kept, strict=True):
            stretch.samples = n
        mine = torch.tensor([sum(kept) // own]).to(shards.device)
        pieces = fewest if is_spread else int(shards.sum(mine))
        if pieces < 2 or not fewest:
            what = "single samples" if piece is None else f"pieces of {size}"
            raise UserError(
                f"{samples} samples over {shards.world_size} rank(s) give {pieces} {what}: noise shows between two or "
                "more, and each rank needs one (give more samples, or smaller pieces)"
            )
        left = samples - pieces * size
        return cls(
            stretches=[stretch for stretch in stretches if stretch.samples],
            shards=Ranks(shards.device) if is_spread else shards,
            piece=piece,
            own=own,
            joined=(lambda tensor: shards.sum(tensor.contiguous()).div_(shards.world_size)) if is_spread else None,
            notes=(f"{left} samples left over from pieces of {size} were left out",) if left else (),
        )


def check(objective: Objective, piece: int | None) -> None:
    """Refuse pieces that the objective can't be cut into.

    Raises:
        UserError: pieces are needed; they have less than one sample.
    """
    is_sum = objective.is_sum_over_samples
    if piece is None and joins_samples(objective.bn_mode, objective.model, is_sum_over_samples=is_sum):
        what = "BatchNorm in train mode" if is_sum else "the loss"
        modes = ", or use BatchNorm's mode 'eval' or 'frozen-batch'" if is_sum else ""
        raise UserError(
            f"{what} joins the samples of a batch, so that no single sample has a gradient: compare pieces of a size "
            f"that you name (piece=32, or --noise-piece 32 of train), each a batch of its own{modes}"
        )


def _sums_over_ranks(objective: Objective) -> bool:
    """Whether the forward pass, or the loss, of a piece sums over all ranks."""
    if not objective.is_sum_over_samples:
        return True
    layers = batch_norms(objective.model) if objective.bn_mode == "train" else []
    return any(type(layer).forward is not _BatchNorm.forward for layer in layers)
