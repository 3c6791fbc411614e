"""Unbiased estimates of the gradient's signal and noise from the gradients of pieces of a batch. Needs no torch.

G is the true gradient of the mean loss, Σ the covariance of one sample's gradient. A batch is cut into pieces i of n_i
samples, each of which has the gradient G_i of its own mean loss; the batch's gradient is g = Σ c_i·G_i with Σ c_i = 1.
Since E|G_i|² = |G|² + tr Σ/n_i and E|g|² = |G|² + tr Σ·Σ c_i²/n_i::

    M = Σ c_i·|G_i|²        a = Σ c_i/n_i        b = Σ c_i²/n_i
    tr Σ ≈ (M − |g|²)/(a − b)        |G|² ≈ |g|² − b·tr Σ

Both are unbiased for any sizes and shares. With c_i = n_i/B of a batch of B samples in k pieces, a = k/B and b = 1/B:
the estimates of McCandlish et al. 2018 (arXiv 1812.06162, appendix A.1). Their ratio tr Σ/|G|² is biased: average
both over steps before dividing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def unbiased(
    mean_square: ArrayLike, square_of_mean: ArrayLike, mean_inverse: ArrayLike, inverse_of_mean: ArrayLike
) -> tuple[Floats, Floats]:
    """Estimate |G|² and tr Σ, elementwise over arrays that broadcast.

    Args:
        mean_square: M.
        square_of_mean: |g|².
        mean_inverse: a, in 1/samples.
        inverse_of_mean: b, in 1/samples.

    Returns:
        |G|² and tr Σ; NaN where there is but one piece, so that a = b.
    """
    m, s, a, b = (np.asarray(x, dtype=np.float64) for x in (mean_square, square_of_mean, mean_inverse, inverse_of_mean))
    # Of pieces of unequal size a and b may be equal only to rounding.
    apart = np.where(a - b > 1e-12 * np.abs(a), a - b, np.nan)
    trace = (m - s) / apart
    return s - b * trace, trace
