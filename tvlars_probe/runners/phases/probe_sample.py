"""The fixed samples on which curvature is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.curvature.measuring import sample_hash
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.batches import Indices
    from tvlars_probe.data.images import TensorImages

PIECE = 256
"""Most samples of a batch, which bounds the memory of its graph."""


def check_size(count: int, number: int, there: int) -> None:
    """Refuse samples that the data doesn't hold.

    Args:
        count: size of a sample.
        number: how many disjoint samples are drawn.
        there: size of the data.

    Raises:
        UserError: it holds less, or ``count`` is below 1.
    """
    if not 1 <= count <= there:
        raise UserError(f"--samples {count}: there are {there:,} (allowed: 1 to {there})")
    if number * count > there:
        smaller = f", or --samples up to {there // number} with so many draws" if there >= number else ""
        raise UserError(
            f"--draws {number} of {count:,} samples each: disjoint draws take {number * count:,}, there are {there:,} "
            f"(allowed: --draws up to {there // count} with that size{smaller})"
        )


@dataclass(frozen=True, eq=False)
class ProbeSample:
    """Samples of a part of the data set, the same for every run, number of ranks and phase.

    Attributes:
        images: the part of the data set.
        indices: where the samples stand in it, in ascending order.
    """

    images: TensorImages
    indices: tuple[int, ...]

    @classmethod
    def draw(cls, images: TensorImages, count: int, seed: int = 0) -> ProbeSample:
        """Draw ``count`` samples without replacement.

        Raises:
            UserError: there are fewer than ``count``, or ``count`` is below 1.
        """
        return cls.draws(images, count, 1, seed)[0]

    @classmethod
    def draws(cls, images: TensorImages, count: int, number: int, seed: int = 0) -> tuple[ProbeSample, ...]:
        """Draw ``number`` disjoint samples of ``count`` each, without replacement. The first is what `draw` gives.

        Raises:
            UserError: there are fewer than ``number * count``, or ``count`` is below 1.
        """
        check_size(count, number, len(images))
        order = np.random.default_rng(seed).permutation(len(images))
        pieces = np.sort(order[: number * count].reshape(number, count), axis=1)
        return tuple(cls(images, tuple(int(index) for index in piece)) for piece in pieces)

    @property
    def sample_id(self) -> str:
        """Hash of the indices, by which rows measured on one sample are known."""
        return sample_hash(self.indices)

    def batches(
        self,
        ranks: Ranks,
        dtype: torch.dtype,
        *,
        whole: bool,
        make: Callable[[TensorImages, Indices, torch.dtype], tuple[Tensor, ...]] | None = None,
    ) -> list[tuple[Tensor, ...]]:
        """This rank's part of the sample as batches on its device.

        Args:
            ranks: this process among the others.
            dtype: type of the images.
            whole: whether to make one batch of it, as statistics over the batch need it; otherwise pieces of at most
                `PIECE` samples.
            make: makes a batch of the samples at some indices; by default images and labels.
        """
        share = np.array_split(np.array(self.indices, dtype=np.int64), ranks.world_size)[ranks.rank]
        if not len(share):
            return []
        pieces = [share] if whole else np.array_split(share, -(-len(share) // PIECE))
        images = self.images.to(ranks.device)
        if make is not None:
            return [make(images, piece, dtype) for piece in pieces]
        return [images.batch(torch.from_numpy(piece).to(ranks.device), dtype) for piece in pieces]
