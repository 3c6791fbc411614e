"""How an epoch is cut into batches, and each batch over ranks: a function of seed and epoch alone.

The last, smaller batch is kept. Ranks' shares differ by one sample at most and are never padded.
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
        pieces: indices of its samples, in micro-batches; none where the batch has fewer samples than there are ranks.
        batch_size: samples of the global batch.
    """

    pieces: list[Indices]
    batch_size: int

    @property
    def size(self) -> int:
        """Samples of this rank."""
        return sum(len(piece) for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Batches of a data set.

    Attributes:
        samples: in the data set.
        batch_size: of one update, over all ranks.
        micro_batch: most samples of a rank that are computed at once.
        rank: whose shares.
        world_size: number of ranks.
        seed: of the order.
        in_step: every rank cuts its share into equally many pieces, some perhaps empty, since its layers sum over the
            ranks in each.
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
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Share]:
        """This rank's share of each batch of an epoch, from batch ``first`` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        for start in range(first * self.batch_size, self.samples, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield Share(self._pieces(np.array_split(batch, self.world_size)[self.rank], len(batch)), len(batch))

    def _pieces(self, share: Indices, batch_size: int) -> list[Indices]:
        """Micro-batches of nearly equal size, so that none is too small for BatchNorm without need."""
        longest = math.ceil(batch_size / self.world_size) if self.in_step else len(share)
        if not longest:
            return []
        return np.array_split(share, math.ceil(longest / (self.micro_batch or longest)))

    @property
    def micro_batches(self) -> int:
        """Pieces in which a rank computes a full batch."""
        return math.ceil(math.ceil(self.batch_size / self.world_size) / (self.micro_batch or self.batch_size))

    @property
    def smallest_piece(self) -> int:
        """Samples in the smallest non-empty piece over which BatchNorm takes statistics.

        That is a piece of any rank and batch, or, in step, the ranks' pieces together.
        """
        sizes = {self.batch_size, self.samples % self.batch_size or self.batch_size}
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
    """A rank's part of all samples in pieces, for evaluation: every sample once over all ranks."""
    share = np.array_split(np.arange(samples), world_size)[rank]
    for start in range(0, len(share), piece):
        yield share[start : start + piece]
