from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from tvlars_probe.analyses.batches.trade_off import fit_trade_off

S_MIN, B_CRIT = 500.0, 250.0
SIZES = 2.0 ** np.arange(5, 11)


def steps(batch: np.ndarray, noise: float, seed: int, b_crit: float = B_CRIT) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return S_MIN * (1 + b_crit / batch) * np.exp(rng.normal(0, noise, len(batch)))


def test_without_noise_the_law_is_found_again() -> None:
    batch = np.repeat(SIZES, 2)
    fit = fit_trade_off(batch, steps(batch, 0, 0))
    assert (fit.s_min.value, fit.b_crit.value) == (pytest.approx(S_MIN, rel=1e-6), pytest.approx(B_CRIT, rel=1e-6))
    assert fit.e_min.value == pytest.approx(S_MIN * B_CRIT, rel=1e-6)
    assert fit.steps(SIZES) == pytest.approx(steps(SIZES, 0, 0), rel=1e-6)
    samples = fit.steps(SIZES) * SIZES
    assert (fit.steps(SIZES) / fit.s_min.value - 1) * (samples / fit.e_min.value - 1) == pytest.approx(1.0, rel=1e-9)
    assert not fit.is_poor


def test_it_is_the_least_squares_of_scipy() -> None:
    batch = np.repeat(SIZES, [3, 1, 2, 4, 3, 2])
    there = steps(batch, 0.2, 1)
    fit = fit_trade_off(batch, there)

    def off(x: np.ndarray) -> np.ndarray:
        return np.asarray(x[0] + np.log1p(np.exp(x[1]) / batch) - np.log(there))

    theirs = optimize.least_squares(off, [5.0, 5.0], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert math.log(fit.s_min.value) == pytest.approx(theirs.x[0], abs=1e-6)
    assert math.log(fit.b_crit.value) == pytest.approx(theirs.x[1], abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_its_intervals_hold_the_truth(seeds: int) -> None:
    """In 95 % of the cases, as far as 150 draws can tell: three standard errors are 5 %."""
    draws, hits = 150, np.zeros(3)
    batch = np.repeat(SIZES, seeds)
    for draw in range(draws):
        fit = fit_trade_off(batch, steps(batch, 0.1, 1000 * seeds + draw), resamples=300, seed=draw)
        pairs = ((fit.s_min, S_MIN), (fit.e_min, S_MIN * B_CRIT), (fit.b_crit, B_CRIT))
        hits += [one.low <= truth <= one.high for one, truth in pairs]
        assert all(one.low <= one.value <= one.high for one, _ in pairs)
    assert hits.min() / draws >= 0.9


@pytest.mark.parametrize("seeds", [(1, 1, 2, 1, 1, 1), (1, 3, 1, 1, 1, 1), (2, 2, 2, 1, 1, 1)])
def test_a_few_repetitions_give_no_interval_that_is_too_narrow(seeds: tuple[int, ...]) -> None:
    """Two or three residuals, drawn again and again, don't show how uncertain their own variance is."""
    draws, hits = 100, 0
    batch = np.repeat((32, 64, 128, 256, 512, 1024), seeds)
    for draw in range(draws):
        b_crit = fit_trade_off(batch, steps(batch, 0.05, 77 + draw), resamples=200, seed=draw).b_crit
        hits += b_crit.low <= B_CRIT <= b_crit.high
    assert hits / draws >= 0.9


@pytest.mark.parametrize(("b_crit", "ends"), [(1e6, (False, True)), (0.1, (True, False))])
def test_batches_on_one_side_leave_the_interval_open(b_crit: float, ends: tuple[bool, bool]) -> None:
    batch = np.repeat(SIZES, 3)
    fit = fit_trade_off(batch, steps(batch, 0.1, 2, b_crit))
    assert (fit.b_crit.low == 0, fit.b_crit.high == math.inf) == ends
    assert not fit.b_crit.is_known
    # The one of the two that these batches show is known all the same.
    known = fit.s_min if ends[0] else fit.e_min
    assert known.is_known
    assert known.low <= (S_MIN if ends[0] else S_MIN * b_crit) <= known.high
    assert (fit.e_min if ends[0] else fit.s_min).low == 0


def test_one_seed_gives_no_interval() -> None:
    fit = fit_trade_off(SIZES, steps(SIZES, 0.1, 3))
    assert 100 < fit.b_crit.value < 600
    assert all(math.isnan(x) for x in (fit.b_crit.low, fit.b_crit.high, fit.s_min.low, fit.chance))
    assert fit.b_crit.text.endswith("(interval unknown)")


def test_steps_off_the_law_are_a_poor_fit_with_a_wide_interval() -> None:
    batch = np.repeat(SIZES, 3)
    bent = steps(batch, 0.02, 4) * np.exp(0.3 * np.cos(np.arange(len(batch)) // 3 * np.pi))
    fit, sound = fit_trade_off(batch, bent), fit_trade_off(batch, steps(batch, 0.02, 4))
    assert fit.is_poor
    assert not sound.is_poor
    assert math.log(fit.b_crit.high / fit.b_crit.low) > 5 * math.log(sound.b_crit.high / sound.b_crit.low)


def test_the_draws_have_a_seed() -> None:
    batch = np.repeat(SIZES, 3)
    there = steps(batch, 0.1, 5)
    assert fit_trade_off(batch, there, seed=1) == fit_trade_off(batch, there, seed=1)
    assert fit_trade_off(batch, there, seed=1) != fit_trade_off(batch, there, seed=2)
