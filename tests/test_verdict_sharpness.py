"""Whether sharpness predicts anything, from made-up tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.verdicts import page, sharpness_tables
from benchmarks.verdicts.sharpness import COLUMNS, ENDS, LEAST, OPERATORS, POOLED, correlations

SETTINGS, SEEDS = 12, 3


def made(optimizer: str, *, sign: float, offset: float, spread: float = 0.0) -> pd.DataFrame:
    """Runs in which accuracy falls (sign −1) or rises (+1) with every sharpness, from setting to setting."""
    rng = np.random.default_rng(0)
    rows = []
    for setting in range(SETTINGS):
        for seed in range(SEEDS):
            sharpness = offset + setting
            row = {
                "data": "digits", "model": "cnn", "optimizer": optimizer, "schedule": "none", "warmup_epochs": None,
                "peak_lr": 2.0**setting, "batch_size": 512, "seed": seed, "gap": -sign * setting,
                "test_accuracy": 80 + sign * setting + spread * rng.normal(),
            }  # fmt: skip
            rows.append(row | dict.fromkeys(OPERATORS, sharpness))
    return pd.DataFrame(rows)


def rho(table: pd.DataFrame, optimizer: str, outcome: str) -> float:
    (found,) = table[
        (table["optimizer"] == optimizer) & (table["sharpness"] == "adaptive") & (table["outcome"] == outcome)
    ]["rho"]
    return float(found)


def test_each_optimizer_has_its_own_correlation_and_all_have_one() -> None:
    table = correlations(pd.concat([made("sgd", sign=-1, offset=0), made("lars", sign=1, offset=0)]))
    assert [*table.columns] == COLUMNS
    assert len(table) == 3 * len(OPERATORS) * 2
    assert rho(table, "sgd", "test_accuracy") == pytest.approx(-1)
    assert rho(table, "sgd", "gap") == pytest.approx(1)
    assert rho(table, "lars", "test_accuracy") == pytest.approx(1)
    assert abs(rho(table, POOLED, "test_accuracy")) < 0.05  # they cancel
    assert table["settings"].tolist() == [SETTINGS] * 16 + [2 * SETTINGS] * 8


def test_a_point_is_a_setting_and_not_a_run() -> None:
    runs = made("sgd", sign=-1, offset=0, spread=6)
    means = runs.groupby("peak_lr")[["adaptive", "test_accuracy"]].mean()
    expected = means["adaptive"].corr(means["test_accuracy"], method="spearman")
    table = correlations(runs)
    assert rho(table, "sgd", "test_accuracy") == pytest.approx(expected)
    row = table[(table["optimizer"] == "sgd") & (table["sharpness"] == "adaptive")].iloc[0]
    assert row["low"] <= row["rho"] <= row["high"]
    assert row["settings"] == SETTINGS


def test_runs_that_learned_too_little_and_those_without_figures_are_left_out() -> None:
    runs = made("sgd", sign=-1, offset=0)
    dead = runs.assign(test_accuracy=10.0, peak_lr=runs["peak_lr"] * 1000, adaptive=1e6)
    unmeasured = runs.assign(adaptive=np.nan, peak_lr=runs["peak_lr"] * 3)
    table = correlations(pd.concat([runs, dead, unmeasured]), least=50.0)
    assert rho(table, "sgd", "test_accuracy") == pytest.approx(-1)
    counts = table[table["optimizer"] == "sgd"].groupby("sharpness")["settings"].first()
    assert counts.to_dict() == {"adaptive": SETTINGS, "ggn": 2 * SETTINGS, "hessian": 2 * SETTINGS,
                                "relative": 2 * SETTINGS}  # fmt: skip


def test_few_settings_have_no_interval() -> None:
    table = correlations(made("sgd", sign=-1, offset=0).query("peak_lr < 32"))
    assert table[["low", "high"]].isna().all(axis=None)
    assert rho(table, "sgd", "test_accuracy") == pytest.approx(-1)


def test_the_tables_are_those_of_the_committed_runs() -> None:
    """Whoever changes either writes them again: python -m benchmarks.verdicts.sharpness --write."""
    table = correlations(pd.read_csv(ENDS), least=LEAST)
    assert sharpness_tables.text(table) == page.written(sharpness_tables.COMMAND)
