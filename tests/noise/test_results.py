from __future__ import annotations

import math

import numpy as np
import pytest

from tvlars_probe.noise.results import SimpleBatch, fieller


@pytest.mark.parametrize(("n", "d", "var_n", "var_d", "cov"), [(9.0, 2.0, 0.5, 0.1, 0.05), (9.0, 2.0, 4.0, 0.2, -0.3)])
def test_fiellers_ends_are_where_the_difference_is_just_told_from_zero(
    n: float, d: float, var_n: float, var_d: float, cov: float
) -> None:
    found = fieller(n, d, var_n, var_d, cov, 1.96)
    assert found.value == n / d
    assert found.low < n / d < found.high
    for b in (found.low, found.high):
        assert abs(n - b * d) == pytest.approx(1.96 * math.sqrt(var_n - 2 * b * cov + b**2 * var_d))


def test_a_signal_that_cannot_be_told_from_zero_makes_the_batch_unknown_but_bounded_below() -> None:
    found = fieller(9.0, 0.5, 0.5, 1.0, 0.0, 1.96)
    assert found.value is None
    assert found.high == math.inf
    inside = [b for b in np.geomspace(1e-3, 1e3, 2000) if (9 - 0.5 * b) ** 2 <= 1.96**2 * (0.5 + b**2)]
    assert found.low == pytest.approx(min(inside), rel=0.01)
    assert str(found) == "unknown (above 3.6)"
    assert str(fieller(9.0, 0.5, 99.0, 1.0, 0.0, 1.96)) == "unknown"
    assert str(SimpleBatch(3.0, 2.0, 4.5)) == "3 (2 to 4.5)"


def test_a_signal_below_zero_is_unknown() -> None:
    """By chance the unbiased estimate lies far below zero."""
    found = fieller(9.0, -5.0, 0.5, 0.1, 0.0, 1.96)
    assert (found.value, found.high) == (None, math.inf)
