"""How an epoch is cut into batches, and each batch into the ranks' shares.

The order of the samples is a function of seed and epoch alone, so it is the same on any number of ranks and after
resuming. The last, smaller batch is kept. The ranks' shares differ by at most one sample and are never padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of one global batch.

    Attributes:
        pieces: indices of the rank's samples, cut into micro-batches. A rank without samples, in a batch smaller than
            the number of ranks, has no pieces, or only empty ones if the plan is ``in_step``.
        batch_size: number of samples in the global batch.
        epoch: the pass over the data that the batch begins in, which its augmentation is drawn for.
    """

    pieces: list[Indices]
    batch_size: int
    epoch: int = 0

    @property
    def size(self) -> int:
        """Number of samples in this share."""
        return sum(len(piece) for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a data set, as one rank sees them.

    Attributes:
        samples: number of samples in the data set.
        batch_size: samples of one update, over all ranks.
        micro_batch: most samples that a rank computes at once; None for its whole share.
        rank: the rank whose shares the plan gives.
        world_size: number of ranks.
        seed: seed of the samples' order.
        in_step: whether all ranks cut their shares into the same number of pieces, some of them possibly empty. Models
            that sum over the ranks in each forward pass need that.
    """

    samples: int
    batch_size: int
    micro_batch: int | None = None
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    in_step: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return math.ceil(self.length / self.batch_size)

    @property
    def length(self) -> int:
        """Samples per epoch."""
        return self.samples

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Share]:
        """This rank's share of each batch of an epoch, from batch ``first`` on."""
        # Each rank draws the whole order and takes its part: ranks need no message, and a resumed run no saved state.
        order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        for start in range(first * self.batch_size, self.samples, self.batch_size):
            yield self._share(order[start : start + self.batch_size], epoch)

    def _share(self, batch: Indices, epoch: int) -> Share:
        """This rank's share of a batch that begins in the pass ``epoch``."""
        pieces = self._pieces(np.array_split(batch, self.world_size)[self.rank], len(batch))
        return Share(pieces, len(batch), epoch)

    def _pieces(self, share: Indices, batch_size: int) -> list[Indices]:
        """Cut a share into micro-batches of nearly equal size: a small rest would give BatchNorm poor statistics."""
        # The longest share of any rank decides the number of pieces in step: a rank that made one forward pass fewer
        # would leave the others waiting in a collective.
        longest = math.ceil(batch_size / self.world_size) if self.in_step else len(share)
        if not longest:
            return []
        return np.array_split(share, math.ceil(longest / (self.micro_batch or longest)))

    @property
    def micro_batches(self) -> int:
        """Number of pieces in which a rank computes its share of a full batch."""
        return math.ceil(math.ceil(self.batch_size / self.world_size) / (self.micro_batch or self.batch_size))

    @property
    def smallest_piece(self) -> int:
        """Number of samples in the smallest non-empty piece over which BatchNorm takes statistics.

        BatchNorm takes them over one rank's piece or, if the plan is ``in_step``, over the ranks' pieces together.
        """
        # Batches have two sizes: the full one and the last one's.
        sizes = {self.batch_size, self.length % self.batch_size or self.batch_size}
        pieces: list[int] = []
        for size in sizes:
            shares = np.array_split(np.arange(size), self.world_size)
            lengths = [[len(piece) for piece in self._pieces(share, size)] for share in shares]
            if self.in_step:
                pieces += [sum(together) for together in zip(*lengths, strict=True)]
            else:
                pieces += [length for some in lengths for length in some]
        return min(length for length in pieces if length)


def in_order(samples: int, piece: int, rank: int, world_size: int) -> Iterator[Indices]:
    """One rank's part of all samples, in pieces of at most ``piece``; over the ranks, each sample occurs once."""
    share = np.array_split(np.arange(samples), world_size)[rank]
    for start in range(0, len(share), piece):
        yield share[start : start + piece]
