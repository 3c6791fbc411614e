"""Means with Student's interval, and rank correlations with a bootstrap interval."""

from __future__ import annotations

import itertools
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
class IntervalEstimate:
    """An estimate with its interval, which needn't be symmetric.

    Attributes:
        value: the estimate; NaN where there is none.
        low: lower end of the interval; NaN where it is unknown, 0 where a positive quantity's is open.
        high: upper end; NaN where it is unknown, infinite where it is open.
    """

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there is an interval, and both of its ends are closed."""
        return self.low > 0 and self.high < math.inf  # False with NaN

    @property
    def text(self) -> str:
        """The estimate for a reader: "310 (210 to 450)"."""
        value = "unknown" if math.isnan(self.value) else number(self.value)
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{value} (interval unknown)"
        if self.high == math.inf:
            return f"{value} ({number(self.low)} or more)"
        return f"{value} ({number(self.low)} to {number(self.high)})"


def number(value: float) -> str:
    """A number with three digits, or all of a whole one: "0.123", "12,346"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


MOST_ORDERS = 5040
"""Up to so many orders of the pairs are all counted, those of seven; of more, a sample."""

FEWEST = 8
"""Fewest pairs for which a bootstrap interval is given.

Of pairs from a bivariate normal distribution it holds the true ρ in 94 to 99 % of cases from 8 pairs on, with 6 in as
few as 79 %, with 3 in 28 %: three pairs in order give ρ = 1 in every draw.
"""


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's ρ of two quantities over runs.

    Attributes:
        rho: Pearson's correlation of the ranks (ties share their mean rank); NaN where one quantity is constant, and
            below three pairs.
        low: lower end of the percentile bootstrap interval (Efron 1979); NaN where there is none.
        high: upper end of that interval.
        count: number of pairs in which both are finite.
        chance: share of all orders of one quantity in which ρ is at least as far from zero; NaN without ρ.
        why_no_interval: why there is no interval; empty where there is one.
    """

    rho: float
    low: float
    high: float
    count: int
    chance: float
    why_no_interval: str


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    fewest: int = FEWEST,
    near: float = 0.0,
) -> RankCorrelation:
    """Spearman's ρ with a percentile bootstrap interval.

    The bootstrap draws runs with replacement and computes ρ of each draw from the ranks within that draw. A draw in
    which one quantity is constant has no ρ and is left out. Runs of which one quantity isn't finite don't count. Values
    that rounding alone tells apart are ties. Where every draw has the same ρ, as of runs in perfect order, their spread
    says nothing, and there is no interval.

    Args:
        x: one quantity, a value per run, (N,).
        y: the other quantity, (N,).
        level: level of the interval.
        resamples: number of draws; also of the orders that ``chance`` is counted in where there are too many of them.
        seed: seed of the draws.
        fewest: with fewer pairs there is no interval.
        near: values of ``y`` that are as near as this are ties, too: a difference of two figures has an error of its
            own, however small it is itself.
    """
    pairs = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    if n < 3:  # two pairs always lie in order or in reverse
        return RankCorrelation(math.nan, math.nan, math.nan, n, math.nan, f"{n} runs are too few (at least 3)")
    pairs = np.column_stack([_levels(pairs[:, 0], 0.0), _levels(pairs[:, 1], near)])
    ranks = stats.rankdata(pairs, axis=0)
    rho = float(_pearson(ranks[None])[0])
    if math.isnan(rho):
        return RankCorrelation(rho, rho, rho, n, rho, "one of the two is the same in all runs")
    rng = np.random.default_rng(seed)
    drawn = pairs[rng.integers(n, size=(resamples, n))]
    # All draws at once, (resamples, n, 2). A run drawn twice is a tie, for which the formula by rank differences fails.
    rhos = _pearson(stats.rankdata(drawn, axis=1))
    rhos = rhos[np.isfinite(rhos)]
    chance = _chance(ranks, abs(rho), resamples, rng)
    if n < fewest:
        return RankCorrelation(rho, math.nan, math.nan, n, chance, f"{n} runs are too few (at least {fewest})")
    if not np.ptp(rhos) > 1e-9:
        return RankCorrelation(rho, math.nan, math.nan, n, chance, "every draw has the same ρ")
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2])
    return RankCorrelation(rho, float(low), float(high), n, chance, "")


_ROUNDING = 8
"""Units in the last place by which means of the same numbers may differ."""


def _levels(values: NDArray[np.float64], near: float) -> NDArray[np.float64]:
    """The place of each value among the distinct ones, in order; those nearer than rounding or ``near`` are one."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    apart = np.diff(ascending) > np.maximum(_ROUNDING * np.spacing(np.abs(ascending[1:])), near)
    levels = np.empty(len(values))
    levels[order] = np.concatenate([[0.0], np.cumsum(apart)])
    return levels


def _chance(ranks: NDArray[np.float64], size: float, resamples: int, rng: np.random.Generator) -> float:
    """Share of all orders of the second column in which the correlation of the ranks is at least ``size``."""
    n = len(ranks)
    every = math.factorial(n) <= MOST_ORDERS
    orders = (
        np.array([*itertools.permutations(range(n))])
        if every
        else rng.permuted(np.tile(range(n), (resamples, 1)), axis=1)
    )
    shuffled = np.stack([np.broadcast_to(ranks[:, 0], orders.shape), ranks[orders, 1]], axis=-1)
    as_far = int((np.abs(_pearson(shuffled)) >= size - 1e-9).sum())
    # Of a sample of the orders, the one on record counts as one more: no share is zero.
    return as_far / len(orders) if every else (as_far + 1) / (len(orders) + 1)


def _pearson(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of the two columns of each (n, 2) block; NaN where a column is constant."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    a, b = centred[..., 0], centred[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return rho
