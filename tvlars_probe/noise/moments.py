"""|G|² and tr Σ with their errors, from inner products of the gradients of independent pieces. Needs no torch.

h_1, ..., h_m are the gradients of m pieces of b samples each, h̄ their mean, q_k = |h_k|² and p_k = ⟨h_k, h̄⟩. With
s = |h̄|² the estimates are those of `tvlars_probe.noise.estimates`::

    |G|² ≈ U = (m·s − mean q)/(m − 1)        tr Σ ≈ b·V,  V = (mean q − s)·m/(m − 1)

U is the mean of ⟨h_i, h_j⟩ over all i ≠ j, V that of ½|h_i − h_j|²: both are U-statistics of order two.

Their errors. The jackknife needs the estimates without piece k, which follow from q_k and p_k alone, since
|m·h̄ − h_k|² = m²·s − 2·m·p_k + q_k. A U-statistic's variance has two parts, here the same second one in both, of size
2·tr(Σ_b²)/(m(m − 1)), with Σ_b = Σ/b. The jackknife counts this second part twice (Efron and Stein 1981, Ann. Stat.
9:586). Where noise outweighs signal it is nearly all of U's variance, and intervals would be √2 too wide. So it is
estimated, without bias, from the inner products of some pieces with one another (Chen and Qin 2010, Ann. Stat. 38:808),
and taken off once. The result is never below the second part itself. With fewer than four such pieces nothing is taken
off, and errors are too large rather than too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.noise.estimates import unbiased

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_PIECES = 4
"""Fewest pieces whose inner products tell tr(Σ²)."""

COCHRAN = 25.0
"""Pieces for each unit of squared skewness (Cochran 1977, "Sampling Techniques", section 2.15)."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Estimates with their variances.

    Attributes:
        gradient_square: |G|².
        noise_trace: tr Σ of one sample.
        gradient_square_error: standard error.
        noise_trace_error: standard error.
        covariance: of both estimates.
        skewness: of the pieces' squared distances from their mean gradient, of which tr Σ is the mean; see `skewness`.
    """

    gradient_square: float
    noise_trace: float
    gradient_square_error: float
    noise_trace_error: float
    covariance: float
    skewness: float


def moments(squares: Floats, products: Floats, square_of_mean: float, gram: Floats, piece_size: int) -> Moments:
    """Estimate signal and noise of one tensor, or of several together.

    Args:
        squares: q, shape (m,).
        products: p, shape (m,).
        square_of_mean: s.
        gram: inner products of some of the pieces with one another, shape (c, c).
        piece_size: b.

    Returns:
        NaN for estimates from one piece, and for errors from two.
    """
    m, q, p, s = len(squares), squares, products, square_of_mean
    signal, noise = (float(x) for x in unbiased(q.mean(), s, 1.0, 1.0 / m))
    if m < 3:
        nan = float("nan")
        return Moments(signal, piece_size * noise, nan, nan, nan, nan)
    # Without piece k: the square of the others' sum, and the sum of the others' squares. Constants of all k are left
    # out, as the jackknife takes only what differs.
    rest, others = q - 2 * m * p, -q
    without = np.stack([(rest - others) / ((m - 1) * (m - 2)), (others - rest / (m - 1)) / (m - 2)])
    centred = without - without.mean(axis=1, keepdims=True)
    covariance = (m - 1) / m * centred @ centred.T
    second = 2 * max(trace_of_square(gram), 0.0) / (m * (m - 1))
    # The second part of the estimates' covariance is the same with the other sign: a pair's ⟨x_i, x_j⟩ raises one and
    # lowers the other.
    variances = np.maximum(covariance.diagonal() - second, second)
    errors = np.sqrt(variances)
    joint = float(np.clip(covariance[0, 1] + second, -errors[0] * errors[1], errors[0] * errors[1]))
    return Moments(
        signal, piece_size * noise, float(errors[0]), piece_size * float(errors[1]), piece_size * joint,
        skewness(q, p, s),
    )  # fmt: skip


def skewness(squares: Floats, products: Floats, square_of_mean: float) -> float:
    """Skewness of d_k = |h_k − h̄|²: the mean of (d_k − d̄)³ over the 3/2 power of that of (d_k − d̄)².

    At most √m: where one piece makes all of the noise. 0 where all d_k are alike.

    Args:
        squares: q, shape (m,).
        products: p, shape (m,).
        square_of_mean: s.
    """
    around = squares - 2 * products + square_of_mean
    apart = around - around.mean()
    size = float(np.abs(apart).max(initial=0.0))
    # Of distances that are alike only rounding is left.
    if not size > 1e-9 * float(np.abs(squares).max(initial=0.0)):
        return 0.0
    unit = apart / size
    return float((unit**3).mean() / (unit**2).mean() ** 1.5)


def pieces_needed(skew: float) -> int:
    """Fewest pieces with which the interval of a mean can be trusted whose values have this skewness.

    By Cochran's rule m > 25·skewness², with which a 95 % interval of a mean misses the truth in no more than 6 %. The
    skewness of a sample is below that of its distribution, the more the heavier its tails: it may take more.
    """
    return math.ceil(COCHRAN * max(skew, 0.0) ** 2)


def trace_of_square(gram: Floats) -> float:
    """tr(Σ²) of the covariance of vectors whose inner products are given, unbiased; 0 for fewer than four vectors.

    The mean of ⟨x_1, x_2⟩² over independent x without their mean, as a U-statistic of order four in the inner products
    K: mean K_ij² − 2·mean K_ij·K_jk + mean K_ij·K_kl, each over different indices.
    """
    c = len(gram)
    if c < LEAST_PIECES:
        return 0.0
    k = gram - np.diag(gram.diagonal())
    squares, rows = float((k**2).sum()), k.sum(axis=1)
    paths = float((rows**2).sum()) - squares
    apart = float(rows.sum()) ** 2 - 4 * paths - 2 * squares
    pairs = c * (c - 1)
    return squares / pairs - 2 * paths / (pairs * (c - 2)) + apart / (pairs * (c - 2) * (c - 3))


def top_share(along: Floats, squares: Floats, products: Floats, square_of_mean: float) -> tuple[float, float]:
    """The share of the noise in the span of some orthonormal vectors, and its standard error by the jackknife.

    Args:
        along: ⟨h_i, v_j⟩, shape (m, k).
        squares: q, shape (m,).
        products: p, shape (m,).
        square_of_mean: s.

    Returns:
        tr(PΣ)/tr Σ with the projection P onto the span: a quotient of two unbiased estimates.
    """
    m = len(squares)
    centred = along - along.mean(axis=0)
    inside = (centred**2).sum(axis=1)  # |P(h_i − h̄)|²
    around = squares - 2 * products + square_of_mean  # |h_i − h̄|²
    # Without piece k the sum of squares around the others' mean falls by m/(m − 1)·|h_k − h̄|².
    shares = (inside.sum() - m / (m - 1) * inside) / (around.sum() - m / (m - 1) * around)
    error = np.sqrt((m - 1) / m * ((shares - shares.mean()) ** 2).sum())
    return float(inside.sum() / around.sum()), float(error)
