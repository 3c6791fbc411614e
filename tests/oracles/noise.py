"""Signal and noise of a gradient, from the gradients of pieces themselves, as a weighted variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def of_pieces(grads: Sequence[Tensor], sizes: Sequence[int]) -> tuple[float, float]:
    """|G|² and tr Σ of pieces that weigh by their sizes.

    A piece of n samples deviates from the true gradient by a variance of tr Σ/n: n times the squared deviations from
    the mean, summed over k pieces, have the expectation (k − 1)·tr Σ. The mean's own square is too large by tr Σ/B.
    """
    flat = torch.stack([g.flatten().double() for g in grads])
    n = torch.tensor(sizes, dtype=torch.float64)
    mean = (n[:, None] * flat).sum(0) / n.sum()
    trace = (n * (flat - mean).square().sum(1)).sum() / (len(sizes) - 1)
    return float(mean @ mean - trace / n.sum()), float(trace)
