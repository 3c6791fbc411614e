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
    """A mean over seeds.

    Attributes:
        value: mean; NaN of nothing.
        half_width: of Student's 95 % interval; NaN below two values.
        count: values.
    """

    value: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Mean:
        """The mean of ``values``, NaN left out, with its interval at ``level``."""
        finite = [v for v in values if math.isfinite(v)]
        if len(finite) < 2:
            return cls(finite[0] if finite else math.nan, math.nan, len(finite))
        half = float(stats.t.ppf((1 + level) / 2, len(finite) - 1) * stats.sem(finite))
        return cls(float(np.mean(finite)), half, len(finite))


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's ρ of two quantities over runs.

    Attributes:
        rho: Pearson's correlation of the ranks (ties share their mean rank); NaN where one of them is constant.
        low: lower end of the percentile bootstrap interval (Efron 1979).
        high: upper end.
        count: pairs.
    """

    rho: float
    low: float
    high: float
    count: int


def rank_correlation(
    x: ArrayLike, y: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's ρ with a bootstrap interval: runs are drawn with replacement, ρ is taken anew of each draw.

    Draws in which one quantity is constant have no ρ and are left out.
    """
    pairs = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    if n < 3:
        return RankCorrelation(math.nan, math.nan, math.nan, n)
    drawn = pairs[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    rhos = _pearson(stats.rankdata(drawn, axis=1))
    rhos = rhos[np.isfinite(rhos)]
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2]) if len(rhos) else (math.nan, math.nan)
    rho = _pearson(stats.rankdata(pairs, axis=0)[None])[0]
    return RankCorrelation(float(rho), float(low), float(high), n)


def _pearson(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of the two columns of every (n, 2) block."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    a, b = centred[..., 0], centred[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return rho
