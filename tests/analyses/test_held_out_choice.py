from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tvlars_probe.analyses.held_out_choice import (
    MOST_SPLITS,
    Optimism,
    expected_best,
    optimism_of_choice,
    split_mean,
)


def by_hand(values: np.ndarray, choice: np.ndarray) -> float:
    """The mean over all halvings, one after another."""
    seeds = range(values.shape[1])
    found = []
    for chooses in itertools.combinations(seeds, len(seeds) // 2):
        rate = max(range(len(values)), key=lambda r: np.mean([choice[r, s] for s in chooses]))
        found.append(np.mean([values[rate, s] for s in seeds if s not in chooses]))
    return float(np.mean(found))


@pytest.mark.parametrize("seeds", [2, 3, 5, 6])
def test_the_split_mean_is_the_mean_over_all_halvings(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    values, choice = rng.normal(size=(2, 4, seeds))
    assert split_mean(values, choice) == pytest.approx(by_hand(values, choice))
    assert split_mean(values, values) == pytest.approx(by_hand(values, values))


@pytest.mark.parametrize(
    ("count", "value"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (5, 1.1629644736)],
)
def test_the_expected_best_of_normal_numbers(count: int, value: float) -> None:
    """Closed forms; five by tables of order statistics (Teichroew 1956)."""
    assert expected_best(count) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("seeds", [3, 4, 10])
def test_of_rates_that_are_alike_the_optimism_is_the_expected_best_of_their_means(seeds: int) -> None:
    rng = np.random.default_rng(0)
    found = [optimism_of_choice(x, x).value for x in rng.normal(size=(2000, 5, seeds))]
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected_best(5) / math.sqrt(seeds), abs=4 * error)


def test_a_rate_that_is_better_with_every_seed_is_no_choice() -> None:
    values = np.array([[70.0, 72, 74], [90, 91, 92], [10, 10, 11]])
    assert optimism_of_choice(values, values) == Optimism(0.0, "splits")
    assert split_mean(values, values) == pytest.approx(91)


def test_a_choice_by_figures_that_have_nothing_to_do_with_the_metric_has_no_optimism() -> None:
    rng = np.random.default_rng(1)
    differences = []
    for values, choice in rng.normal(size=(2000, 2, 5, 4)):
        plain = values[choice.mean(axis=1).argmax()].mean()
        differences.append(plain - split_mean(values, choice))
    assert np.mean(differences) == pytest.approx(0, abs=4 * np.std(differences) / math.sqrt(2000))


def test_rates_without_seeds_in_common_have_the_optimism_of_their_scatter() -> None:
    nan = math.nan
    values = np.array([[1.0, 3, nan, nan, nan], [nan, nan, 2, 4, 6]])
    # Squares about the means: 2 of one rate, 8 of the other, over 1 + 2 degrees of freedom.
    told = optimism_of_choice(values, values)
    assert told.source == "scatter"
    assert told.value == pytest.approx(math.sqrt(10 / 3) / math.sqrt(math.pi) / math.sqrt(3))


def test_seeds_that_only_some_rates_have_are_left_out_of_the_splits() -> None:
    values = np.array([[1.0, 3, 2, 50], [2, 2, 2, math.nan]])
    assert optimism_of_choice(values, values).source == "splits"
    assert optimism_of_choice(values, values).value == optimism_of_choice(values[:, :3], values[:, :3]).value


def test_without_a_choice_there_is_none_and_one_seed_tells_nothing() -> None:
    assert optimism_of_choice(np.array([[1.0, 2]]), np.array([[1.0, 2]])) == Optimism(0.0, "none")
    one = np.array([[1.0], [2.0]])
    assert optimism_of_choice(one, one).source == "unknown"
    assert math.isnan(optimism_of_choice(one, one).value)


def test_of_many_seeds_a_fixed_sample_of_the_halvings_is_taken() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(3, 14))
    assert math.comb(14, 7) > MOST_SPLITS
    assert split_mean(values, values) == split_mean(values, values)
    assert split_mean(values, values) == pytest.approx(by_hand(values, values), abs=0.1)
