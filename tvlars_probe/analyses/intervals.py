"""Means with Student's interval, and rank correlations with a bootstrap interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds, or over samples drawn from the data.

    Attributes:
        value: the mean; NaN where there is no value.
        half_width: half of Student's interval, 95 % by default; NaN with fewer than two values.
        count: number of values, n.
        deviation: standard deviation of a single value, s, with n − 1 in its denominator; NaN with fewer than two.
    """

    value: float
    half_width: float
    count: int
    deviation: float = math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean: s/√n; NaN with fewer than two values."""
        return self.deviation / math.sqrt(self.count) if self.count else math.nan

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Mean:
        """The mean of the finite ``values``, with Student's interval at ``level``.

        Its half width is t·s/√n, where s is the sample's standard deviation, and t the quantile (1 + level)/2 of
        Student's distribution with n − 1 degrees of freedom.
        """
        finite = [v for v in values if math.isfinite(v)]
        if len(finite) < 2:
            return cls(finite[0] if finite else math.nan, math.nan, len(finite))
        half = float(stats.t.ppf((1 + level) / 2, len(finite) - 1) * stats.sem(finite))
        return cls(float(np.mean(finite)), half, len(finite), float(np.std(finite, ddof=1)))


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's ρ of two quantities over runs.

    Attributes:
        rho: Pearson's correlation of the ranks (ties share their mean rank); NaN where one quantity is constant.
        low: lower end of the percentile bootstrap interval (Efron 1979).
        high: upper end of that interval.
        count: number of pairs in which both are finite; below three, the other three are NaN.
    """

    rho: float
    low: float
    high: float
    count: int


def rank_correlation(
    x: ArrayLike, y: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's ρ with a percentile bootstrap interval.

    The bootstrap draws runs with replacement and computes ρ of each draw from the ranks within that draw. A draw in
    which one quantity is constant has no ρ and is left out. Runs of which one quantity isn't finite don't count.

    Args:
        x: one quantity, a value per run, (N,).
        y: the other quantity, (N,).
        level: level of the interval.
        resamples: number of draws.
        seed: seed of the draws.
    """
    pairs = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    if n < 3:  # two pairs always lie in order or in reverse
        return RankCorrelation(math.nan, math.nan, math.nan, n)
    drawn = pairs[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    # All draws at once, (resamples, n, 2). A run drawn twice is a tie, for which the formula by rank differences fails.
    rhos = _pearson(stats.rankdata(drawn, axis=1))
    rhos = rhos[np.isfinite(rhos)]
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2]) if len(rhos) else (math.nan, math.nan)
    rho = _pearson(stats.rankdata(pairs, axis=0)[None])[0]
    return RankCorrelation(float(rho), float(low), float(high), n)


def _pearson(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of the two columns of each (n, 2) block; NaN where a column is constant."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    a, b = centred[..., 0], centred[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return rho
