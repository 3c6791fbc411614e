"""By how much is a setting too good, if its learning rate was chosen on the seeds that its mean is taken over?

The best of several means is the best partly by luck. A choice on one half of the seeds has no luck with the other half:
the mean of that half, averaged over all halves, is free of it, and the difference is the optimism of the choice.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import integrate, stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_SPLITS = 252
"""Up to so many ways to choose half of the seeds are all taken, those of ten seeds; of more, a sample."""


@dataclass(frozen=True, slots=True)
class Optimism:
    """By how much the mean of the best of several learning rates is too good.

    Attributes:
        value: the difference, zero or above, in the metric's unit; NaN where it is unknown.
        source: "splits" where it was measured by choosing on one half of the seeds and averaging over the other;
            "scatter" where the rates have fewer than two seeds in common, and it is what `expected_best` gives if all
            rates are equally good, which is the most that is to be expected; "unknown" where no rate has two seeds;
            "none" where there was nothing to choose.
    """

    value: float
    source: str


def optimism_of_choice(values: Floats, choice: Floats) -> Optimism:
    """The optimism of choosing the learning rate with the best mean.

    Args:
        values: the metric of each rate and seed, (R, S), with its sign such that higher is better; NaN where a rate
            wasn't tried with a seed.
        choice: the metric that the rate is chosen by, (R, S), in the same way.
    """
    there = np.isfinite(values) & np.isfinite(choice)
    tried = there.any(axis=1)
    values, choice, there = values[tried], choice[tried], there[tried]
    if len(values) < 2:
        return Optimism(0.0, "none")
    common = there.all(axis=0)
    if common.sum() < 2:
        return _by_scatter(values, choice)
    values, choice = values[:, common], choice[:, common]
    plain = values[choice.mean(axis=1).argmax()].mean()
    return Optimism(max(0.0, float(plain - split_mean(values, choice))), "splits")


def split_mean(values: Floats, choice: Floats) -> float:
    """The mean over one half of the seeds at the rate that the other half chooses, averaged over all halvings.

    Of an odd number of seeds the smaller half chooses. Of more than `MOST_SPLITS` ways a fixed sample is taken.

    Args:
        values: the metric of each rate and seed, (R, S), S ≥ 2.
        choice: the metric whose highest mean chooses the rate, (R, S).
    """
    seeds = values.shape[1]
    chooses = _halves(seeds)
    best = (choice @ chooses.T).argmax(axis=0)
    # The sum over the other half: the sum over all seeds without the half that chose.
    rest = values.sum(axis=1)[best] - np.take_along_axis(values @ chooses.T, best[None], axis=0)[0]
    return float(rest.mean() / (seeds - seeds // 2))


@functools.lru_cache
def _halves(seeds: int) -> Floats:
    """Which seeds choose in each split, as zeros and ones, (splits, seeds)."""
    size = seeds // 2
    if math.comb(seeds, size) <= MOST_SPLITS:
        chosen = np.array([*itertools.combinations(range(seeds), size)])
    else:
        chosen = np.random.default_rng(0).permuted(np.tile(range(seeds), (MOST_SPLITS, 1)), axis=1)[:, :size]
    halves = np.zeros((len(chosen), seeds))
    np.put_along_axis(halves, chosen, 1.0, axis=1)
    return halves


def _by_scatter(values: Floats, choice: Floats) -> Optimism:
    counts = np.isfinite(values).sum(axis=1)
    if counts.max() < 2:
        return Optimism(math.nan, "unknown")
    means = np.nanmean(values, axis=1, keepdims=True)
    deviation = math.sqrt(float(np.nansum((values - means) ** 2)) / int((counts - 1).sum()))
    chosen = int(np.nanmean(choice, axis=1).argmax())
    return Optimism(expected_best(len(values)) * deviation / math.sqrt(int(counts[chosen])), "scatter")


@functools.lru_cache
def expected_best(count: int) -> float:
    """The expected highest of ``count`` independent standard normal numbers: ∫ x dΦ(x)ⁿ, 0.56 for 2, 1.16 for 5.

    The best of so many means that are alike is too good by that many standard errors.
    """

    def density(x: float) -> float:
        return x * count * float(stats.norm.pdf(x)) * float(stats.norm.cdf(x)) ** (count - 1)

    return float(integrate.quad(density, -12, 12)[0])
