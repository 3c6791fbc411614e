from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tvlars_probe.analyses.intervals import Mean, rank_correlation


def test_the_mean_has_students_interval() -> None:
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    mean = Mean.of([*values, float("nan")])
    assert (mean.value - mean.half_width, mean.value + mean.half_width) == pytest.approx((low, high))
    assert mean.standard_error == pytest.approx(stats.sem(values))
    assert np.isnan(Mean.of([1.0]).half_width)
    assert np.isnan(Mean.of([1.0]).standard_error)
    assert np.isnan(Mean.of([]).standard_error)


def test_rank_correlation_is_spearmans_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 6, 40).astype(float)
    y = x + rng.normal(size=40)
    assert rank_correlation(x, y).rho == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_correlation_of_known_size_lies_in_its_interval() -> None:
    pearson = 0.7
    x, y = np.random.default_rng(3).multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], 400).T
    found = rank_correlation(x, y)
    spearman = 6 / np.pi * np.arcsin(pearson / 2)  # of a bivariate normal
    assert found.low < spearman < found.high
    assert found.high - found.low < 0.15


def test_the_interval_is_the_same_for_the_same_seed_and_missing_pairs_do_not_count() -> None:
    x, y = np.arange(10.0), np.arange(10.0) ** 2
    x[3] = np.nan
    first, again = rank_correlation(x, y, seed=5), rank_correlation(x, y, seed=5)
    assert first == again
    assert (first.rho, first.count) == (1.0, 9)
    assert np.isnan(rank_correlation([1, 2], [1, 2]).rho)
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).rho)
