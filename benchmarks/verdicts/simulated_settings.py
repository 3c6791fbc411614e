"""How often settings that are alike are called apart, and how often intervals hold the mean, of drawn accuracies."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from tvlars_probe.analyses.apart import LEVEL, Pairs
from tvlars_probe.analyses.held_out_choice import split_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

SEEDS = (2, 3, 5, 10)
SETTINGS = (2, 3, 5, 9)

SCATTERS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], Floats], float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "normal, every second setting with four times the scatter": (
        lambda rng, shape: rng.normal(size=shape) * np.where(np.arange(shape[1]) % 2, 4.0, 1.0)[:, None], 0.0
    ),
    "skewed a little (gamma of shape 4, skewness −1)": (lambda rng, shape: -rng.gamma(4.0, size=shape), -4.0),
    "skewed (lognormal, skewness −2.3)": (
        lambda rng, shape: -rng.lognormal(0, 0.6, shape), -float(np.exp(0.18))
    ),
    "skewed, with an end (exponential, skewness −2)": (lambda rng, shape: -rng.exponential(size=shape), -1.0),
    "heavy tails (Student, 3 degrees of freedom)": (lambda rng, shape: rng.standard_t(3, shape), 0.0),
    "one run in ten is dead": (
        lambda rng, shape: rng.normal(size=shape) - 80.0 * (rng.random(shape) < 0.1), -8.0
    ),
    "counted in steps of two standard deviations": (
        lambda rng, shape: 2 * np.round(rng.normal(size=shape) / 2 + 0.25), float("nan")
    ),
}  # fmt: skip
"""How accuracies of a setting scatter over seeds, (draws, settings, seeds), and the mean of that."""

CURVES = {
    "one rate": [0.0],
    "2 rates alike": [0.0] * 2,
    "5 rates alike": [0.0] * 5,
    "9 rates alike": [0.0] * 9,
    "5 rates, the next 0.5 σ worse": [-2.0, -0.5, 0.0, -0.5, -2.0],
    "5 rates, the next 1 σ worse": [-4.0, -1.0, 0.0, -1.0, -4.0],
    "5 rates, the next 4 σ worse": [-16.0, -4.0, 0.0, -4.0, -16.0],
}
"""Means of a setting's rates, in standard deviations of its seeds."""


def alike(draws: int) -> pd.DataFrame:
    """Settings that are alike, each at one rate: a row per scatter, number of settings and of seeds."""
    rows = []
    for name, (draw, mean) in SCATTERS.items():
        for k in SETTINGS:
            for n in SEEDS:
                sample = draw(np.random.default_rng([k, n]), (draws, k, n))
                rows.append({"scatter": name, "settings": k, "seeds": n} | _judged(sample, mean))
    return pd.DataFrame(rows)


def _judged(sample: Floats, mean: float) -> dict[str, float]:
    k, n = sample.shape[1:]
    means, errors = sample.mean(axis=2), sample.std(axis=2, ddof=1) / n**0.5
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * errors
    order = np.argsort(-means, axis=1)
    means, errors, halves = (np.take_along_axis(table, order, axis=1) for table in (means, errors, half))
    counts = np.array(float(n))
    pairs = Pairs(errors=(errors[:, :1], errors[:, 1:]), seeds=(counts, counts))
    gaps = means[:, :1] - means[:, 1:]
    best = (pairs.chance(gaps) < LEVEL).all(axis=1)
    by_range = gaps > _critical(k, pairs.freedom) * pairs.error
    return {
        "best_share": float(best.mean()),
        "any_apart_share": float((best | by_range.any(axis=1)).mean()),
        # What was told before: the best one's interval doesn't touch the next one's.
        "intervals_apart_share": float((gaps[:, 0] > halves[:, 0] + halves[:, 1]).mean()),
        "coverage_share": float((np.abs(sample.mean(axis=2) - mean) <= half).mean()) if mean == mean else np.nan,
    }


def _critical(k: int, freedom: Floats) -> Floats:
    """The difference, in standard errors, that the studentised range of k allows; between a few exact values."""
    with np.errstate(divide="ignore"):
        found: Floats = np.interp(1 / freedom, _PLACES, _exact(k))
    return found


_PLACES = 1 / np.array([40, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2.5, 2, 1.5, 1.2, 1])


@functools.cache
def _exact(k: int) -> list[float]:
    return [float(stats.studentized_range.ppf(1 - LEVEL, k, 1 / place)) / 2**0.5 for place in _PLACES]


def chosen(draws: int) -> pd.DataFrame:
    """Two settings whose rates were chosen on their own seeds: a row per pair of curves and number of seeds.

    Of the first one also how much too good its mean is, and how often intervals hold the mean of the chosen rate.
    """
    pairs = [(name, name) for name in CURVES] + [(name, "one rate") for name in CURVES if name != "one rate"]
    pairs.append(("9 rates alike", "5 rates, the next 4 σ worse"))
    rows: list[dict[str, Any]] = []
    for one, other in pairs:
        for n in SEEDS:
            rng = np.random.default_rng([n, len(rows)])
            rows.append({"rates": one, "against": other, "seeds": n} | _two(rng, CURVES[one], CURVES[other], draws, n))
    return pd.DataFrame(rows)


def _two(rng: np.random.Generator, one: list[float], other: list[float], draws: int, n: int) -> dict[str, float]:
    first, second = _best(rng, one, draws, n), _best(rng, other, draws, n)
    counts = np.array(float(n))
    pairs = Pairs(errors=(first["error"], second["error"]), seeds=(counts, counts))
    plain, held_out = first["mean"] - second["mean"], first["held_out"] - second["held_out"]
    both = np.sign(plain) * np.stack([plain, held_out])
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * first["error"]
    truth, low = first["truth"], np.minimum(first["mean"], first["held_out"])
    return {
        "too_good": float((first["mean"] - truth).mean()),
        "held_out_too_good": float((first["held_out"] - truth).mean()),
        "plain_coverage_share": float((np.abs(first["mean"] - truth) <= half).mean()),
        "coverage_share": float(((low - half <= truth) & (truth <= first["mean"] + half)).mean()),
        "plain_apart_share": float((pairs.chance(both[0]) < LEVEL).mean()),
        "apart_share": float((pairs.chance(both.min(axis=0)) < LEVEL).mean()),
    }


def _best(rng: np.random.Generator, curve: list[float], draws: int, n: int) -> dict[str, Floats]:
    means = np.array(curve)
    sample = rng.normal(size=(draws, len(means), n)) + means[:, None]
    best = sample.mean(axis=2).argmax(axis=1)
    values = sample[np.arange(draws), best]
    return {
        "mean": values.mean(axis=1),
        "error": values.std(axis=1, ddof=1) / n**0.5,
        "truth": means[best],
        "held_out": np.minimum(values.mean(axis=1), [split_mean(drawn, drawn) for drawn in sample]),
    }
