from __future__ import annotations

import math

import numpy as np
import pytest

from tvlars_probe.live.loss_curve import MOST_POINTS, LossCurve


def curve_of(losses: list[float], chunk: int) -> LossCurve:
    curve = LossCurve()
    for first in range(0, len(losses), chunk):
        part = losses[first : first + chunk]
        curve.add(np.arange(first, first + len(part)), np.array(part))
    return curve


@pytest.mark.parametrize("chunk", [1, 7, 5000])
def test_spikes_and_what_is_not_finite_survive_however_long_it_is(chunk: int) -> None:
    losses = np.random.default_rng(0).normal(2, 0.1, 5000).tolist()
    losses[1234], losses[3000], losses[4321] = 50.0, -7.0, math.inf
    curve = curve_of(losses, chunk)
    points = dict(curve.points)
    assert len(curve) <= MOST_POINTS
    assert {1234: 50.0, 3000: -7.0, 4321: math.inf}.items() <= points.items()
    assert [*points] == sorted(points)
    assert {0, 4999} <= {*points}
    assert all(losses[step] == loss for step, loss in points.items())


def test_a_short_one_is_kept_whole() -> None:
    assert curve_of([3.0, 2.0, math.nan][:2], 1).points == ((0, 3.0), (1, 2.0))
    assert LossCurve().points == ()


def test_all_not_finite_is_kept_too() -> None:
    curve = curve_of([math.nan] * 2000, 100)
    assert 0 < len(curve) <= MOST_POINTS


def test_a_cut_forgets_the_step_and_later_ones() -> None:
    curve = curve_of([float(step) for step in range(10)], 10)
    curve.cut(4)
    assert curve.points[-1] == (3, 3.0)
    curve.add(np.array([4]), np.array([40.0]))
    assert curve.points[-2:] == ((3, 3.0), (4, 40.0))


def test_steps_as_far_apart_as_integers_allow() -> None:
    curve = LossCurve()
    curve.add(np.array([*range(MOST_POINTS), (1 << 63) - 1]), np.arange(MOST_POINTS + 1.0))
    assert curve.points[-1] == ((1 << 63) - 1, float(MOST_POINTS))
