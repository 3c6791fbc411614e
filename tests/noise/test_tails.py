"""Gradients of which a few make most of the noise: errors that can't be trusted are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.noise.test_moments import of
from tvlars_probe.noise.moments import pieces_needed, skewness

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def sized(sigma: float) -> Draw:
    """Normal noise in 20 elements, whose size is lognormal over samples; σ = 0 is normal noise."""
    return lambda rng, m: rng.normal(size=(m, 20)) * rng.lognormal(0, sigma, size=(m, 1))


def elements(sigma: float) -> Draw:
    """Noise that is lognormal in each of 20 elements."""
    return lambda rng, m: rng.lognormal(0, sigma, size=(m, 20)) - np.exp(sigma**2 / 2)


def test_the_skewness_is_that_of_the_squared_distances() -> None:
    vectors = elements(1.0)(np.random.default_rng(0), 50) + 3
    around = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    assert of(vectors).skewness == pytest.approx(stats.skew(around))
    alike = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]) * 3
    assert of(alike).skewness == 0.0
    one = np.zeros((40, 3))
    one[0] = 1e3
    assert of(one).skewness == pytest.approx(stats.skew(((one - one.mean(axis=0)) ** 2).sum(axis=1)))
    assert np.isnan(of(vectors[:2]).skewness)
    assert skewness(np.zeros(5), np.zeros(5), 0.0) == 0.0
    assert [pieces_needed(skew) for skew in (-1.0, 0.0, 1.0, 2.1)] == [0, 0, 25, 111]


@pytest.mark.parametrize(
    ("draw", "m", "least", "most"),
    [
        (sized(0.0), 64, 0.0, 0.03),
        (sized(0.0), 512, 0.0, 0.0),
        (sized(0.8), 64, 0.95, 1.0),
        (sized(1.2), 512, 0.95, 1.0),
        (elements(1.0), 64, 0.9, 1.0),
        (elements(1.5), 16, 0.9, 1.0),
    ],
    ids=["normal, 64", "normal, 512", "lognormal sizes, 64", "heavy sizes, 512", "lognormal, 64", "heavy, 16"],
)
def test_heavy_tails_are_told_and_normal_noise_is_not(draw: Draw, m: int, least: float, most: float) -> None:
    """Intervals of the heavy ones hold tr Σ in 57 to 86 % of draws, of the normal ones in 95 %."""
    rng = np.random.default_rng(m)
    told = np.mean([pieces_needed(of(draw(rng, m)).skewness) > m for _ in range(100)])
    assert least <= told <= most


def test_a_result_says_that_its_errors_are_too_small() -> None:
    torch.manual_seed(0)
    model, targets = torch.nn.Linear(4, 1).double(), torch.full((60, 1), 5.0).double()
    inputs, sizes = torch.randn(60, 4).double(), torch.randn(60, 1).mul(0.8).exp()
    sound = tvlars_probe.gradient_noise(model, F.mse_loss, (inputs / inputs.norm(dim=1, keepdim=True), targets))
    heavy = tvlars_probe.gradient_noise(model, F.mse_loss, (inputs * sizes, targets))
    whole = heavy.whole
    assert whole.heavy_tails is True
    assert whole.noise_skewness is not None
    assert whole.noise_skewness > 60**0.5 / 5
    (doubt,) = heavy.doubts
    assert doubt.startswith("a few of the 60 gradients make much of tr Σ (skewness ")
    assert "doubtful: heavy tails" in str(heavy.simple_batch)
    assert heavy.ratios()["heavy_tails"].tolist()[0] is True
    assert heavy.frame()["noise_skewness"].iloc[0] == whole.noise_skewness
    assert (sound.whole.heavy_tails, sound.doubts) == (False, ())
    assert "doubtful" not in str(sound.simple_batch)
