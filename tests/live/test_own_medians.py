from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvlars_probe.live.own_medians import Far, OwnMedians, _medians, as_matrices


def test_the_furthest_tensor_comes_first_whichever_way_it_is_off() -> None:
    medians = OwnMedians()
    medians.add(["up", "down", "same", "little"], np.ones((4, 4)))
    medians.add(["up", "down", "same", "little"], np.array([[8.0, 1 / 16, 1.0, 1.5]]))
    assert medians.furthest(3) == [
        Far("down", 1 / 16, 1.0, pytest.approx(16)),
        Far("up", 8.0, 1.0, pytest.approx(8)),
        Far("little", 1.5, 1.0, pytest.approx(1.5)),
    ]
    assert [far.parameter for far in medians.furthest(1)] == ["down"]


def test_tensors_come_and_go() -> None:
    medians = OwnMedians()
    assert medians.furthest(5) == []
    medians.add(["a", "b"], np.array([[1.0, 1.0], [1.0, 1.0]]))
    medians.add(["b", "c"], np.array([[2.0, 3.0]]))
    assert medians.furthest(5) == [Far("b", 2.0, 1.0, pytest.approx(2))]  # a took no part, c has one figure alone
    assert np.array_equal(medians.last, [np.nan, 2.0, 3.0], equal_nan=True)
    medians.forget()
    assert medians.furthest(5) == []


@pytest.mark.parametrize(("value", "median"), [(0.0, 1.0), (math.inf, 1.0), (1.0, 0.0)])
def test_zero_and_infinity_are_infinitely_far(value: float, median: float) -> None:
    medians = OwnMedians()
    medians.add(["a"], np.array([[median], [median], [value]]))
    assert medians.furthest(1) == [Far("a", value, median, math.inf)]


@pytest.mark.parametrize("value", [0.0, math.inf, 3.0])
def test_nothing_is_far_from_its_equal(value: float) -> None:
    medians = OwnMedians()
    medians.add(["a"], np.full((3, 1), value))
    assert medians.furthest(1) == []


def test_only_the_last_steps_count_however_they_came() -> None:
    figures = np.random.default_rng(0).lognormal(size=(50, 3))
    whole, pieces = OwnMedians(8), OwnMedians(8)
    whole.add(["a", "b", "c"], figures)
    for first in range(0, 50, 3):
        pieces.add(["a", "b", "c"], figures[first : first + 3])
    assert whole.furthest(3) == pieces.furthest(3)
    assert {far.parameter: far.median for far in whole.furthest(3)} == {
        name: pytest.approx(np.median(figures[-8:, k])) for k, name in enumerate("abc")
    }


FIGURES = arrays(np.float64, (5, 3), elements=st.floats(-1e30, 1e30) | st.just(math.nan) | st.just(math.inf))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(figures=FIGURES)
def test_medians_are_those_of_numpy(figures: Any) -> None:
    figures = np.vstack([figures, np.ones((1, 3))])  # each has a figure
    np.testing.assert_allclose(_medians(figures), np.nanmedian(figures, axis=0), rtol=1e-12)


def test_rows_become_matrices_of_steps_and_tensors() -> None:
    rows = pa.table(
        {
            "step": [3, 3, 5, 7, 7],
            "parameter": pa.array(["b", "a", "a", "b", "a"]).dictionary_encode(),
            "grad_norm": pa.array([1, 2, 3, None, 5], pa.float32()),
        }
    )
    steps, names, matrices = as_matrices(rows, ["grad_norm"])
    assert (steps.tolist(), names) == ([3, 5, 7], ["b", "a"])
    assert np.array_equal(matrices["grad_norm"], [[1, 2], [math.nan, 3], [math.nan, 5]], equal_nan=True)
