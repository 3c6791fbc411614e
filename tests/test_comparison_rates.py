"""The benchmark of comparisons: its shares by other routes, on tables that are made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.verdicts import simulated_settings
from benchmarks.verdicts.comparison import (
    CELL,
    apart_of_alike,
    choices,
    correlation_over_seeds,
    coverage,
    of_cells,
    wilson,
)
from benchmarks.verdicts.seeds import trials_in
from tvlars_probe.analyses.apart import SettingMeans

if TYPE_CHECKING:
    from pathlib import Path


def table(values: np.ndarray) -> pd.DataFrame:
    """Accuracies of cells and seeds, (cells, seeds), two rates of each optimizer."""
    return pd.DataFrame(
        [
            {"model": "mlp", "optimizer": f"opt{cell // 2}", "rate": 1.0 + cell % 2, "seed": seed, "test_acc1": value}
            for (cell, seed), value in np.ndenumerate(values)
        ]
    )


def test_seeds_of_one_cell_are_called_apart_as_often_as_welch_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(90, 1, 12)
    share, pairs = apart_of_alike(values, 3, 400, rng)
    by_hand = []
    for _ in range(400):
        order = rng.permutation(values)
        by_hand += [
            stats.ttest_ind(order[i : i + 3], order[i + 3 : i + 6], equal_var=False).pvalue < 0.05 for i in (0, 6)
        ]
    assert pairs == 2
    assert share == pytest.approx(np.mean(by_hand), abs=0.03)


def test_intervals_over_drawn_seeds_hold_the_mean_as_often_as_students_should() -> None:
    rng = np.random.default_rng(1)
    normal = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    assert coverage(normal, 5, 4000, rng) == pytest.approx(0.95, abs=0.012)
    assert coverage(np.r_[np.zeros(39), 40.0], 3, 4000, rng) < 0.2  # one dead run in forty is rarely among three


def test_wilson_by_its_formula() -> None:
    z, n, p = stats.norm.ppf(0.975), 72, 4 / 72
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5,
    )
    assert wilson(p, n) == pytest.approx((centre - half, centre + half))


def test_a_table_has_a_row_for_each_cell_and_size_and_one_for_all() -> None:
    rows = of_cells(table(np.random.default_rng(2).normal(90, 1, (4, 40))), 20)
    assert len(rows) == 3 * (4 + 1)
    every = rows[rows["model"] == "all"]
    assert every["pairs"].tolist() == [4 * 6, 4 * 4, 4 * 2]
    assert (every["low_share"] < every["apart_share"]).all()
    assert rows[CELL].iloc[0].tolist() == ["mlp", "opt0", 1.0]


def test_the_better_one_of_two_rates_that_are_alike_is_too_good_and_the_held_out_choice_is_not() -> None:
    rows = choices(table(np.random.default_rng(3).normal(90, 1, (2, 40))), 400)
    expected = [1 / np.sqrt(np.pi * n) for n in (3, 5, 10)]
    assert rows["too_good"].tolist() == pytest.approx(expected, abs=0.25)
    assert (rows["held_out_too_good"] < rows["too_good"]).all()


def test_what_seeds_have_in_common_is_found() -> None:
    rng = np.random.default_rng(4)
    own, shared = rng.normal(size=(4, 400)), rng.normal(size=400)
    assert correlation_over_seeds(table(own + shared))["correlation"][0] == pytest.approx(0.5, abs=0.1)


def test_drawn_settings_are_judged_as_compare_judges_them() -> None:
    draws, k, n = 40, 3, 4
    sample = np.random.default_rng(5).normal(size=(draws, k, n)) * np.array([1.0, 2.0, 4.0])[:, None]
    sample[::2, 0] += 6
    found = []
    for drawn in sample:
        order = np.argsort(-drawn.mean(axis=1))
        means, errors = drawn.mean(axis=1)[order], stats.sem(drawn, axis=1)[order]
        apart = SettingMeans(means=means, held_out=means, errors=errors, seeds=np.full(k, float(n))).against_leader()
        found.append([apart["apart"][1:].all(), apart["apart"][1:].any()])
    told = simulated_settings._judged(sample, 0.0)
    assert [told["best_share"], told["any_apart_share"]] == pytest.approx(np.mean(found, axis=0).tolist())
    assert 0 < told["best_share"] < told["any_apart_share"]


def test_the_runs_are_forty_seeds_of_twelve_cells(tmp_path: Path) -> None:
    assert len({trial.path for trial in trials_in(tmp_path, 2)}) == 24
