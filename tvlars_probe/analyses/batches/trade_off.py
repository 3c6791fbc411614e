"""The trade-off between steps and samples: (S/S_min − 1)(E/E_min − 1) = 1, fitted to runs with several batch sizes.

With a batch of B samples E = S·B, and the law (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11) becomes::

    S = S_min·(1 + B_crit/B)        E = E_min·(1 + B/B_crit)        B_crit = E_min/S_min

At B_crit a run takes twice the fewest steps and twice the fewest samples. The fit is by least squares in log S, with a
normal error of one size for all runs: log S_i = a + log(1 + e^u/B_i), a = log S_min, u = log B_crit. For each u the
best a is a mean, so that one dimension is left, which is searched on a grid and then refined.

The interval of u holds the values that a fit allows: those whose sum of squares, beyond the smallest, is at most q·s².
The variance s² of a single run is that within batch sizes, over seeds, pooled. The quantile q comes from a bootstrap:
residuals, pooled and widened by √(n/(n − 1)) for n seeds, are drawn anew for each run around the fit, and the same
ratio is computed at the u that is true there. (Resampling the seeds of each batch size and taking percentiles, as is
often done, holds B_crit in 70 to 92 % of cases with two to five seeds, where 95 % is claimed; this in 92 to 97 %.)
Where the fit is poor, s² is that of the batch sizes' means around the curve. Ends of the grid that are allowed leave an
interval open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

from tvlars_probe.analyses.intervals import IntervalEstimate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

POOR = 0.01
"""A fit is poor if the means lie so far off the curve by chance in fewer than this share of cases."""

_FEWEST_RESIDUALS = 6
"""With fewer degrees of freedom within batch sizes the draws repeat the same few residuals, and don't show how far
their variance may be from the true one: the quantile is at least that of a linear fit, of the F distribution. (With one
batch size of two seeds and five of one, draws alone held B_crit in 60 % of cases.)"""

_REACH, _POINTS = 1e3, 4001
"""The grid of B_crit goes so many times beyond the batch sizes, with so many points: 1 % apart or closer."""


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """A fit.

    Attributes:
        s_min: fewest steps, with any batch.
        e_min: fewest samples.
        b_crit: their ratio, in samples. All three are NaN where the batch sizes don't bend: the answer is beyond them.
        deviation: standard deviation of log S over seeds; NaN with one seed.
        misfit: root mean square of log S from the curve, over the batch sizes' means.
        chance: how likely a misfit as large is if the law holds; NaN with one seed, or fewer than three batch sizes.
    """

    s_min: IntervalEstimate
    e_min: IntervalEstimate
    b_crit: IntervalEstimate
    deviation: float
    misfit: float
    chance: float

    @property
    def is_poor(self) -> bool:
        """Whether the curve doesn't fit."""
        return self.chance < POOR

    def steps(self, batch: ArrayLike) -> Floats:
        """Steps to the target with a batch size."""
        return self.s_min.value * (1 + self.b_crit.value / np.asarray(batch, float))


def fit_trade_off(
    batch: ArrayLike, steps: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> TradeOff:
    """Fit the law to runs.

    Args:
        batch: each run's batch size, (N,), with at least two that differ.
        steps: the steps it took to the target, (N,), above 0.
        level: level of the intervals.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    sizes, places, counts = np.unique(np.asarray(batch, float), return_inverse=True, return_counts=True)
    logs = np.log(np.asarray(steps, float))
    means = np.bincount(places, logs) / counts
    grid = np.linspace(math.log(sizes[0] / _REACH), math.log(sizes[-1] * _REACH), _POINTS)
    grid = _refined(grid, sizes, means, counts)
    curves = _Curves(np.log1p(np.exp(grid[:, None]) / sizes), counts)
    squares, offsets = curves.squares(means[None])[0], curves.offsets(means[None])[0]
    best = int(squares.argmin())
    residuals, freedom = logs - means[places], len(logs) - len(sizes)
    variance = float(residuals @ residuals) / freedom if freedom else math.nan
    off, off_freedom = float(squares[best]), len(sizes) - 2
    chance = _chance(off, off_freedom, variance, freedom)
    if chance < POOR:
        variance = off / off_freedom
        allowed = variance * float(stats.f.ppf(level, 1, off_freedom))
    elif freedom:
        widened = residuals * np.sqrt(counts / np.maximum(counts - 1, 1))[places]
        drawn = _Draws(widened[counts[places] > 1], places, counts, seed=seed, resamples=resamples)
        quantile = drawn.quantile(curves, best, float(offsets[best]), level)
        if freedom < _FEWEST_RESIDUALS:
            quantile = max(quantile, float(stats.f.ppf(level, 1, freedom)))
        allowed = variance * quantile
    else:
        allowed = math.nan
    estimates = _estimates(grid, squares, offsets, allowed, float(counts.sum()), best)
    return TradeOff(
        s_min=estimates[0], e_min=estimates[1], b_crit=estimates[2], deviation=math.sqrt(variance),
        misfit=math.sqrt(off / float(counts.sum())), chance=chance,
    )  # fmt: skip


def _refined(grid: Floats, sizes: Floats, means: Floats, counts: NDArray[np.int64]) -> Floats:
    """The grid, with the best u between its points as a further one."""

    def squares(u: float | Floats) -> Floats:
        found: Floats = _Curves(np.log1p(np.exp(np.atleast_1d(u)[:, None]) / sizes), counts).squares(means[None])[0]
        return found

    best = int(squares(grid).argmin())
    if best in (0, len(grid) - 1):
        return grid
    around = (grid[best - 1], grid[best + 1])
    found = optimize.minimize_scalar(lambda u: float(squares(u)[0]), bounds=around, options={"xatol": 1e-9})
    return np.sort(np.append(grid, found.x))


def _chance(off: float, off_freedom: int, variance: float, freedom: int) -> float:
    """Probability of means at least so far off the curve, by the F test for lack of fit."""
    if off_freedom < 1 or not freedom:
        return math.nan
    if variance < 1e-20:  # seeds that agree to rounding
        return 1.0 if off < 1e-12 else 0.0
    return float(stats.f.sf(off / off_freedom / variance, off_freedom, freedom))


class _Curves:
    """The law's curves for all u of the grid, at the batch sizes.

    Args:
        values: log(1 + e^u/B), (U, sizes).
        counts: runs of each batch size, (sizes,).
    """

    def __init__(self, values: Floats, counts: NDArray[np.int64]) -> None:
        self.values, self.counts, self.total = values, counts, int(counts.sum())
        self._means = values @ counts / self.total
        centred = values - self._means[:, None]
        self._centred, self._own = centred * counts, (centred * centred) @ counts

    def offsets(self, means: Floats) -> Floats:
        """The best a for each u, (R, U), of R sets of means, (R, sizes)."""
        return (means @ self.counts / self.total)[:, None] - self._means

    def squares(self, means: Floats) -> Floats:
        """Weighted sum of squares of the means around each curve with its best a, (R, U)."""
        centred = means - (means @ self.counts / self.total)[:, None]
        own = (centred * centred) @ self.counts
        return np.maximum(own[:, None] - 2 * means @ self._centred.T + self._own, 0.0)


@dataclass(frozen=True)
class _Draws:
    """Runs drawn anew around a fit.

    Attributes:
        residuals: what is drawn from.
        places: each run's batch size, by number.
        counts: runs of each batch size.
        seed: of the draws.
        resamples: number of draws.
    """

    residuals: Floats
    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    seed: int
    resamples: int

    def quantile(self, curves: _Curves, best: int, offset: float, level: float) -> float:
        """Quantile of (squares at the true u − smallest squares) / variance, over the draws."""
        rng = np.random.default_rng(self.seed)
        drawn = rng.choice(self.residuals, size=(self.resamples, len(self.places)))
        by_size = np.zeros((len(self.places), len(self.counts)))
        by_size[np.arange(len(self.places)), self.places] = 1 / self.counts[self.places]
        means = drawn @ by_size
        within = drawn - means[:, self.places]
        variances = (within * within).sum(axis=1) / (len(self.places) - len(self.counts))
        squares = curves.squares(offset + curves.values[best] + means)
        beyond = squares[:, best] - squares.min(axis=1)
        # A draw without spread, as of few seeds, has no ratio; of equal residuals rounding is left.
        told = variances > 1e-12 * float((self.residuals**2).mean())
        return float(np.quantile(beyond[told] / variances[told], level)) if told.any() else 0.0


def _estimates(
    grid: Floats, squares: Floats, offsets: Floats, allowed: float, total: float, best: int
) -> tuple[IntervalEstimate, IntervalEstimate, IntervalEstimate]:
    """S_min, E_min and B_crit with their intervals.

    A pair (a, u) is allowed where squares(u) + total·(a − offset(u))² is at most the smallest squares + ``allowed``.
    """
    is_open_value = best in (0, len(grid) - 1)
    at = [math.nan] * 3 if is_open_value else [offsets[best], offsets[best] + grid[best], grid[best]]
    room = squares[best] + allowed - squares
    if math.isnan(allowed):
        return tuple(IntervalEstimate(math.exp(value), math.nan, math.nan) for value in at)  # type: ignore[return-value]
    inside = room >= 0
    u, a = grid[inside], offsets[inside]
    around = np.sqrt(room[inside] / total)
    # Where an end of the grid is allowed, so is what lies beyond: there the runs tell one of S_min and E_min alone.
    below, above = bool(inside[0]), bool(inside[-1])
    zero, infinite = 0.0, math.inf
    s_min = (zero if above else _exp((a - around).min()), _exp((a + around).max()))
    e_min = (zero if below else _exp((a + u - around).min()), _exp((a + u + around).max()))
    b_crit = (zero if below else math.exp(u.min()), infinite if above else math.exp(u.max()))
    values = [math.exp(value) for value in at]
    return (
        IntervalEstimate(values[0], *s_min),
        IntervalEstimate(values[1], *e_min),
        IntervalEstimate(values[2], *b_crit),
    )


def _exp(value: float) -> float:
    """e to a power; infinite beyond what a double holds, as the end of an interval that hardly any seeds tell."""
    return math.exp(value) if value < 700 else math.inf
