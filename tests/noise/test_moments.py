"""Estimates and errors against brute force on explicit vectors, and how often intervals hold the truth."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import t as student

from tvlars_probe.noise.moments import moments, top_share, trace_of_square
from tvlars_probe.noise.results import fieller

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.noise.moments import Moments

    Floats = NDArray[np.float64]


def of(vectors: Floats, piece: int = 1, gram: int = 32) -> Moments:
    mean = vectors.mean(axis=0)
    some = vectors[:gram]
    return moments((vectors**2).sum(axis=1), vectors @ mean, float(mean @ mean), some @ some.T, piece)


def plain(vectors: Floats) -> Floats:
    """|G|² and tr Σ by their definitions: means over pairs."""
    gram, m = vectors @ vectors.T, len(vectors)
    pairs = (gram.sum() - gram.trace()) / (m * (m - 1))
    return np.array([pairs, np.trace(np.cov(vectors.T))])


def test_estimates_are_the_means_over_pairs_and_errors_the_jackknife_less_the_second_part() -> None:
    vectors = np.random.default_rng(0).normal(0.5, 1.0, (12, 7))
    found, m = of(vectors, piece=5), len(vectors)
    left_out = np.stack([plain(np.delete(vectors, k, axis=0)) for k in range(m)])
    jackknife = (m - 1) / m * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    second = 2 * trace_of_square(vectors @ vectors.T) / (m * (m - 1))
    square, trace = plain(vectors)
    assert found.gradient_square == pytest.approx(square)
    assert found.noise_trace == pytest.approx(5 * trace)
    errors = np.sqrt(np.maximum(jackknife - second, second))
    assert found.gradient_square_error == pytest.approx(errors[0])
    assert found.noise_trace_error == pytest.approx(5 * errors[1])


def test_the_square_of_the_covariance_is_the_mean_over_different_indices() -> None:
    vectors = np.random.default_rng(1).normal(0.3, 1.0, (6, 4))
    k = vectors @ vectors.T
    terms = [k[a, b] ** 2 - 2 * k[a, b] * k[b, c] + k[a, b] * k[c, d] for a, b, c, d in permutations(range(6), 4)]
    assert trace_of_square(k) == pytest.approx(np.mean(terms))
    assert trace_of_square(k[:3, :3]) == 0.0


def test_two_pieces_have_no_errors() -> None:
    found = of(np.eye(2))
    assert found.noise_trace == pytest.approx(1.0)
    assert np.isnan([found.gradient_square_error, found.noise_trace_error, found.covariance]).all()


def test_the_share_of_noise_in_a_span_is_that_of_the_covariance() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(0.2, 1.0, (40, 5)) * [3, 2, 1, 1, 1]
    q, mean = (vectors**2).sum(axis=1), vectors.mean(axis=0)
    span = np.eye(5)[:, :2]

    def share(some: Floats) -> float:
        covariance = np.cov(some.T)
        return float(np.trace(span.T @ covariance @ span) / np.trace(covariance))

    value, error = top_share(vectors @ span, q, vectors @ mean, float(mean @ mean))
    left_out = np.array([share(np.delete(vectors, k, axis=0)) for k in range(40)])
    assert value == pytest.approx(share(vectors))
    assert error == pytest.approx(np.sqrt(39 / 40 * ((left_out - left_out.mean()) ** 2).sum()))


CASES = {
    # size, mean of each element, deviations, draws from Student's distribution rather than the normal one
    "signal": (1000, 0.5, 1.0, False),
    "noise": (1000, 0.0, 1.0, False),
    "few elements": (10, 0.3, 1.0, False),
    "heavy tails": (50, 0.1, 1.0, True),
    "unlike directions": (200, 0.3, np.arange(1, 201) ** -1.0, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("m", [64, 256])
@pytest.mark.parametrize("case", CASES)
def test_intervals_hold_the_truth_in_95_of_100_draws(case: str, m: int) -> None:
    """|G|², tr Σ and their quotient, each in 95 ± 3 % of 1,000 draws."""
    size, shift, scale, is_heavy = CASES[case]
    rng, quantile = np.random.default_rng(m), student.ppf(0.975, m - 1)
    deviations = np.broadcast_to(scale, size)
    square, trace = size * shift**2, float((deviations**2).sum())
    held = np.zeros(3)
    for _ in range(1000):
        noise = rng.standard_t(5, (m, size)) / np.sqrt(5 / 3) if is_heavy else rng.standard_normal((m, size))
        found = of(shift + noise * deviations)
        quotient = fieller(
            found.noise_trace,
            found.gradient_square,
            found.noise_trace_error**2,
            found.gradient_square_error**2,
            found.covariance,
            float(quantile),
        )
        held += [
            abs(found.gradient_square - square) <= quantile * found.gradient_square_error,
            abs(found.noise_trace - trace) <= quantile * found.noise_trace_error,
            # Without signal every B_simple is too small: infinity must belong to the interval.
            quotient.low <= (trace / square if square else np.inf) <= quotient.high,
        ]
    assert ((held[:2] >= 920) & (held[:2] <= 980)).all(), held
    assert 920 <= held[2] <= (1000 if case == "noise" else 980), held
