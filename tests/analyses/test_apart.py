from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from tvlars_probe.analyses.apart import SettingMeans

if TYPE_CHECKING:
    import pandas as pd

LARS, SGD, ADAM = [91.0, 92.5, 93.1, 92.2], [90.0, 91.5, 89.2], [88.0, 92.0, 86.5]


def judged(*samples: list[float], held_out: list[float] | None = None) -> pd.DataFrame:
    means = np.array([np.mean(sample) for sample in samples])
    errors = [stats.sem(sample) if len(sample) > 1 else math.nan for sample in samples]
    return SettingMeans(
        means=means,
        held_out=means if held_out is None else np.array(held_out),
        errors=np.array(errors),
        seeds=np.array([float(len(sample)) for sample in samples]),
    ).against_leader()


def test_two_settings_are_judged_by_welch() -> None:
    row = judged(LARS, SGD).iloc[1]
    scipys = stats.ttest_ind(LARS, SGD, equal_var=False)
    assert row["p"] == row["p_pair"] == pytest.approx(scipys.pvalue)
    assert row[["gap_low", "gap_high"]].tolist() == pytest.approx([*scipys.confidence_interval()])
    assert row["gap"] == pytest.approx(np.mean(LARS) - np.mean(SGD))


def test_several_settings_are_judged_by_games_and_howell() -> None:
    table = judged(LARS, SGD, ADAM)
    scipys = stats.tukey_hsd(LARS, SGD, ADAM, equal_var=False)
    pairs = [stats.ttest_ind(LARS, other, equal_var=False).pvalue for other in (SGD, ADAM)]
    assert table["p_pair"][1:].tolist() == pytest.approx(pairs)
    # The second one's is larger than that by which the leader wins both its pairs.
    assert scipys.pvalue[0, 1] < max(pairs) < scipys.pvalue[0, 2]
    assert table["p"][1:].tolist() == pytest.approx([scipys.pvalue[0, 1], max(pairs)])
    assert table["apart"].tolist() == [None, False, False]


def test_a_leader_that_wins_each_pair_is_the_best_whatever_the_number_of_settings() -> None:
    """Of nine settings each is at p = 0.05 or below by itself, and none by the studentised range of nine."""
    base = [0.0, 1.0, 2.0]
    table = judged([2.8, 3.8, 4.8], *([base] * 8))
    by_range = stats.studentized_range.sf(2.8 / math.sqrt(2 / 3) * math.sqrt(2), 9, 4)
    assert by_range > 0.05 > table["p_pair"][1]
    assert table["p"][1:].tolist() == pytest.approx([table["p_pair"][1]] * 8)
    assert table["apart"][1:].all()


def test_a_difference_counts_as_the_smaller_one_of_both() -> None:
    plain, less = judged(LARS, SGD).iloc[1], judged(LARS, SGD, held_out=[91.5, np.mean(SGD)]).iloc[1]
    shift = np.mean(LARS) - 91.5
    assert less["gap"] == plain["gap"]
    assert less["gap_low"] == pytest.approx(plain["gap_low"] - shift)
    assert less["gap_high"] == pytest.approx(plain["gap_high"])
    assert less["p"] > plain["p"]
    turned = judged(LARS, SGD, held_out=[80.0, 90.0]).iloc[1]
    assert turned["p"] == 1
    assert turned["apart"] is False


def test_settings_without_any_scatter_are_judged_by_orders() -> None:
    three, five = ([[98.0] * n, [97.0] * n] for n in (3, 5))
    assert judged(*three).iloc[1]["p"] == pytest.approx(2 / 20)
    assert judged(*five).iloc[1]["p"] == pytest.approx(2 / 252)
    assert judged(*five).iloc[1]["apart"] is True
    assert math.isnan(judged(*five).iloc[1]["gap_low"])
    assert judged([98.0] * 5, [98.0] * 5).iloc[1]["p"] == 1


def test_scatter_on_one_side_is_enough() -> None:
    still = [90.0] * 3
    assert judged(LARS, still).iloc[1]["p"] == pytest.approx(stats.ttest_1samp(LARS, 90).pvalue)


def test_a_setting_of_one_seed_is_not_judged() -> None:
    table = judged(LARS, [80.0], ADAM)
    assert table["apart"].tolist() == [None, None, False]
    assert math.isnan(table["p"][1])
