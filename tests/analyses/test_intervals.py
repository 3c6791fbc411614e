from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tvlars_probe.analyses.intervals import FEWEST, IntervalEstimate, Mean, rank_correlation


def test_the_mean_has_students_interval() -> None:
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    mean = Mean.of([*values, float("nan")])
    assert (mean.value - mean.half_width, mean.value + mean.half_width) == pytest.approx((low, high))
    assert mean.standard_error == pytest.approx(stats.sem(values))
    assert np.isnan(Mean.of([1.0]).half_width)
    assert np.isnan(Mean.of([1.0]).standard_error)
    assert np.isnan(Mean.of([]).standard_error)


def test_values_that_rounding_alone_tells_apart_are_ties() -> None:
    x, y = np.arange(8.0), np.array([0.1 + 0.2, 0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert y[0] > y[1]
    assert rank_correlation(x, y).rho == rank_correlation(x, [0.3, *y[1:]]).rho
    # Near zero a difference of two figures is off by more than its own last place.
    gaps = np.array([1e-14, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert rank_correlation(x, gaps).rho < rank_correlation(x, gaps, near=1e-9).rho


def test_a_value_far_from_the_others_leaves_their_order() -> None:
    assert rank_correlation([*range(1, 10), 1e14], range(10)).rho == pytest.approx(1)


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
    x, y = np.arange(10.0), np.array([0.0, 2, 1, 9, 3, 5, 4, 6, 8, 7])
    x[3] = np.nan
    first, again = rank_correlation(x, y, seed=5), rank_correlation(x, y, seed=5)
    assert first == again
    assert first.low < first.rho < first.high
    assert first.count == 9
    assert np.isnan(rank_correlation([1, 2], [1, 2]).rho)
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).rho)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_so_few_runs_have_no_interval_and_say_why(count: int) -> None:
    found = rank_correlation(np.arange(count), np.arange(count) ** 3)
    assert found.rho == 1
    assert np.isnan([found.low, found.high]).all()
    assert found.why_no_interval == f"{count} runs are too few (at least 8)"
    # Of the n! orders of n runs without ties, one gives ρ = 1 and one gives ρ = −1.
    assert found.chance == pytest.approx(2 / math.factorial(count))


def test_the_chance_of_runs_with_ties_is_counted_over_all_orders() -> None:
    one_stands_out = np.array([0, 0, 0, 0, 1])
    found = rank_correlation(one_stands_out, one_stands_out)
    assert (found.rho, found.chance) == (1, pytest.approx(1 / 5))  # it may stand in any of five places
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]).chance == pytest.approx(8 / 24)  # |ρ| is 0.8 or 1


def test_the_chance_of_many_runs_is_that_of_students_approximation() -> None:
    x = np.arange(20.0)
    y = np.array([3, 0, 5, 1, 8, 2, 11, 4, 6, 16, 7, 9, 13, 10, 19, 12, 14, 15, 17, 18], float)[::-1].copy()
    y[:8] = y[:8][::-1]
    found, peer = rank_correlation(x, y, resamples=20_000), stats.spearmanr(x, y)
    assert found.chance == pytest.approx(peer.pvalue, abs=0.01)


def test_runs_in_perfect_order_have_no_spread_to_take_an_interval_from() -> None:
    found = rank_correlation(np.arange(9), -np.arange(9))
    assert (found.rho, found.why_no_interval) == (-1, "every draw has the same ρ")
    assert np.isnan([found.low, found.high]).all()
    assert 0 < found.chance < 0.01
    constant = rank_correlation([1] * 9, np.arange(9))
    assert np.isnan(constant.chance)
    assert constant.why_no_interval == "one of the two is the same in all runs"


def test_an_interval_of_the_fewest_runs_holds_the_truth_as_often_as_it_says() -> None:
    pearson, rng = 0.8, np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(pearson / 2)
    cov = [[1, pearson], [pearson, 1]]
    made = [
        rank_correlation(*rng.multivariate_normal([0, 0], cov, FEWEST).T, resamples=200, seed=k) for k in range(200)
    ]
    told = [found for found in made if not found.why_no_interval]
    assert len(told) >= 190
    assert 0.91 <= np.mean([found.low <= truth <= found.high for found in told]) <= 1


@pytest.mark.parametrize(
    ("estimate", "text", "is_known"),
    [
        ((12345.6, 250.0, 1e6), "12,346 (250 to 1,000,000)", True),
        ((0.1234, 0.1, 2.0), "0.123 (0.1 to 2)", True),
        ((math.nan, 0.0, 4.0), "unknown (0 to 4)", False),
        ((300.0, 20.0, math.inf), "300 (20 or more)", False),
        ((300.0, math.nan, math.nan), "300 (interval unknown)", False),
    ],
)
def test_an_estimate_is_told_with_its_interval(estimate: tuple[float, float, float], text: str, is_known: bool) -> None:
    assert (IntervalEstimate(*estimate).text, IntervalEstimate(*estimate).is_known) == (text, is_known)
