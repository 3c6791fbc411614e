"""Batches of a run that goes on in the middle of the data: all of one size, over the borders of passes.

The samples come as an endless stream, one permutation of the data after another. It is cut into stretches, which take
the place of epochs: after each the model is evaluated. Runs with other batch sizes but the same stretches have seen the
same samples there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.data.batches import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.data.batches import Indices, Share


@dataclass(frozen=True, kw_only=True)
class StretchPlan(BatchPlan):
    """The batches of a stream of samples, in stretches of equal numbers of samples.

    A batch on the border of two passes has samples of both, and may have one of them twice. The last batch of a stretch
    is smaller where ``stretch`` isn't a multiple of the batch size.

    Attributes:
        stretch: samples per stretch.
        first_pass: number of the stream's first pass, counted as epochs are.
        skipped: samples of that pass that come before the stream's beginning.
        stream: tells this stream's order of samples from that of other streams with the same seed; None for the order
            in which `BatchPlan` has the same seed's epochs.
    """

    stretch: int
    first_pass: int = 0
    skipped: int = 0
    stream: int | None = None

    @property
    def length(self) -> int:
        return self.stretch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Share]:
        """This rank's share of each batch of a stretch, from batch ``first`` on."""
        begin = self.skipped + epoch * self.stretch
        end, at = begin + self.stretch, begin + first * self.batch_size
        orders: dict[int, Indices] = {}
        while at < end:
            upto = min(at + self.batch_size, end)
            passes = range(at // self.samples, math.ceil(upto / self.samples))
            # Of the passes before nothing is needed any more.
            orders = {n: orders[n] if n in orders else self._order(n) for n in passes}
            ahead = np.concatenate([*orders.values()])
            start = at - passes[0] * self.samples
            yield self._share(ahead[start : start + upto - at], self.first_pass + passes[0])
            at = upto

    def _order(self, number: int) -> Indices:
        """The order of the samples in a pass of the stream, counted from 0."""
        key = [self.seed, self.first_pass + number]
        # Not 0 at the end: the generator takes keys for equal that differ by zeros there.
        key += [] if self.stream is None else [self.stream, 1]
        return np.random.default_rng(key).permutation(self.samples)
