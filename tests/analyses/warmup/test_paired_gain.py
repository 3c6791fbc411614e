from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tvlars_probe.analyses.warmup.paired_gain import PairedGain, outcomes_by_cell


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ([2.0, 3.0, 4.0], "needed"),  # 3 ± 2.48
        ([2.0, 3.0, 5.0], "unknown"),  # 3.33 ± 3.79
        ([2.8, 3.0, 3.2], "needed"),
        ([-2.8, -3.0, -3.2], "harmful"),
        ([0.3, 0.4, 0.35], "made no difference"),  # above zero, but less than half a point
        ([0.6, 0.7, 0.65], "needed"),  # also within one point of zero
        ([0.0, 0.0, 0.0], "made no difference"),
        ([0.6, 0.6], "made no difference"),  # equal by chance: nothing to judge by, and within one point
        ([1.6, 1.6, 1.6], "unknown"),
        ([1.6] * 6, "needed"),  # a sign test: 2/2⁶ is below 5 %
        ([-1.6] * 6, "harmful"),
        ([-0.2, 0.1, 0.1], "made no difference"),
        ([-1.0, 1.0, 0.0], "unknown"),
        ([5.0], "unknown"),
        ([], "unknown"),
        ([90.0, -1.0, -2.0], "unknown"),
    ],
)
def test_the_outcome_follows_from_the_interval_and_the_mean(gains: list[float], outcome: str) -> None:
    assert PairedGain.of(gains).outcome == outcome


def test_the_interval_is_students() -> None:
    gains = [1.0, 2.5, 0.5, 4.0, 3.0]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(gains), scale=stats.sem(gains))
    found = PairedGain.of(gains).gain
    assert (found.value - found.half_width, found.value + found.half_width) == pytest.approx((low, high))
    assert math.isnan(PairedGain.of([1.0]).gain.half_width)


def test_needed_is_the_mirror_of_harmful() -> None:
    rng = np.random.default_rng(0)
    mirror = {"needed": "harmful", "harmful": "needed"}
    for _ in range(300):
        gains = rng.normal(rng.normal(0, 1), 0.5, 3)
        there, back = PairedGain.of(gains.tolist()).outcome, PairedGain.of((-gains).tolist()).outcome
        assert back == mirror.get(there, there)


def cell(without: list[float], with_: list[float], seeds: list[int]) -> dict[str, object]:
    """The row of a cell of pairs with these accuracies in percent, of ten classes."""
    pairs = pd.DataFrame({"rate": 1.0, "seed": seeds, "chance": 10.0, "accuracy_without": without,
                          "accuracy_with": with_, "diverged_without": False, "diverged_with": False})  # fmt: skip
    pairs["gain"] = pairs["accuracy_with"] - pairs["accuracy_without"]
    rows = outcomes_by_cell(pairs, ["rate"]).to_dict("records")
    assert len(rows) == 1
    return {str(name): value for name, value in rows[0].items()}


def test_means_are_of_the_pairs_with_a_gain_by_seed_and_differ_by_it() -> None:
    row = cell([80.0, 82.0, 70.0, 50.0], [90.0, 90.0, 81.0, np.nan], [0, 0, 1, 2])
    assert (row["without"], row["with"], row["gain"], row["seeds"]) == (75.5, 85.5, 10.0, 2)


@pytest.mark.parametrize("sides", [([11.0], [np.nan]), ([np.nan], [11.0]), ([np.nan], [np.nan])])
def test_a_side_that_was_not_measured_is_not_called_dead(sides: tuple[list[float], list[float]]) -> None:
    assert cell(*sides, [0])["outcome"] == "unknown"
