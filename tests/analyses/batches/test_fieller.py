"""Fieller's interval: by its definition, in limits, and by how often it holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tvlars_probe.analyses.batches.fieller import UNKNOWN, fieller

T = 1.959964


def interval(y: float, x: float, *, yy: float = 1.0, xx: float = 1.0, xy: float = 0.0) -> tuple[float, float]:
    found = fieller(y, x, variances=(yy, xx), covariance=xy, quantile=T)
    return found.low, found.high


@pytest.mark.parametrize(("y", "x", "xy"), [(50.0, 10.0, 0.0), (50.0, 10.0, 0.9), (3.0, 9.0, -0.5)])
def test_at_its_ends_the_difference_is_t_standard_errors_from_zero(y: float, x: float, xy: float) -> None:
    for end in interval(y, x, xy=xy):
        error = math.sqrt(1 - 2 * end * xy + end * end)
        assert abs(y - end * x) == pytest.approx(T * error)


def test_with_small_errors_it_is_the_delta_methods() -> None:
    low, high = interval(50.0, 10.0, yy=1e-4, xx=1e-6)
    error = 5 * math.sqrt(1e-4 / 50**2 + 1e-6 / 10**2)
    assert (low, high) == pytest.approx((5 - T * error, 5 + T * error), rel=1e-6)


@pytest.mark.parametrize("x", [1.5, 0.0, -3.0])
def test_it_has_no_upper_end_where_the_denominator_may_be_zero(x: float) -> None:
    found = fieller(50.0, x, variances=(1.0, 1.0), covariance=0.0, quantile=T)
    assert found.is_open
    assert math.isnan(found.value)
    assert found.low == pytest.approx((50 - T * math.hypot(1, found.low)) / max(x, 0.0) if x > 0 else 50 / T, rel=0.5)
    assert 10 < found.low < 50


def test_a_numerator_that_may_be_zero_gives_an_upper_end_alone() -> None:
    found = fieller(-0.5, 20.0, variances=(1.0, 1.0), covariance=0.0, quantile=T)
    assert (found.low, found.is_open) == (0.0, False)
    assert math.isnan(found.value)
    assert 0 < found.high < 0.2
    assert interval(0.5, 0.5) == (0.0, math.inf)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_units_change_nothing(scale: float) -> None:
    found = fieller(50 * scale, 10.0, variances=(scale * scale if scale > 1e-100 else 0.0, 1.0), covariance=0.0,
                    quantile=T)  # fmt: skip
    assert found.value / scale == pytest.approx(5)
    assert found.low / scale == pytest.approx(4.19, rel=0.02)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_tells_nothing(lost: float) -> None:
    assert fieller(1.0, lost, variances=(1.0, 1.0), covariance=0.0, quantile=T) is UNKNOWN
    assert fieller(1.0, 1.0, variances=(lost, 1.0), covariance=0.0, quantile=T) is UNKNOWN
    assert fieller(0.0, 0.0, variances=(0.0, 0.0), covariance=0.0, quantile=T) is UNKNOWN


@pytest.mark.parametrize("x", [0.0, 0.5, 3.0, 10.0])
def test_it_holds_the_truth_in_at_least_95_percent_of_draws(x: float) -> None:
    """The errors are known here, so that the level is exact where no draw is below zero, and higher elsewhere."""
    rng, held = np.random.default_rng(0), 0
    for ey, ex in rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=3000):
        low, high = interval(30 + ey, x + ex, xy=0.6)
        held += low <= (30 / x if x else math.inf) <= high
    assert held / 3000 >= 0.938
    assert held / 3000 <= (0.962 if x >= 10 else 1)
