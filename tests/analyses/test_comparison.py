from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.comparison import compare, epoch_columns, run_row
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.errors import UserError


def row(
    optimizer: str, lr: float, seed: int, test: float, *, val: float | None = None, **facts: Any
) -> dict[str, object]:
    epochs = pd.DataFrame(
        {"epoch": [0, 1, 2], "test_acc1": [test - 30, test - 10, test], "val_acc1": [np.nan, np.nan, val],
         "test_loss": [3.0, 2.0, 1.0], "val_loss": [np.nan] * 3}
    )  # fmt: skip
    told = {"schedule": "none", "batch_size": 512, **facts}
    made = RunFacts(name=f"{optimizer}{lr}{seed}", optimizer=optimizer, peak_lr=lr, seed=seed, **told)
    return run_row(made, epochs.astype({"val_acc1": float}), metric=told.pop("metric", "test_acc1"), target=80.0)


def test_each_setting_stands_at_its_best_rate_with_mean_and_interval_over_seeds() -> None:
    values = {("LARS", 1.0): (70, 72, 74), ("LARS", 2.0): (90, 91, 92), ("SGD", 0.1): (60, 61, 62)}
    rows = [row(o, lr, s, v) for (o, lr), seeds in values.items() for s, v in enumerate(seeds)]
    result = compare(rows)
    table = result.table.set_index("optimizer")
    assert table.loc["LARS", ["rate", "mean", "runs", "rates"]].tolist() == [2.0, 91.0, 6, 2]
    assert table.loc["LARS", "half_width"] == pytest.approx(Mean.of([90, 91, 92]).half_width)
    assert result.verdict.answer.startswith("LARS")
    assert result.chosen_on == "test_acc1"
    assert result.pivot().loc[("LARS", "none"), 512] == "91.00 ± 2.5"
    assert table.loc["LARS", "epochs_to_target"] == 2
    assert np.isnan(table.loc["SGD", "epochs_to_target"])


def test_rates_are_chosen_on_held_out_data_where_there_is_any() -> None:
    result = compare([row("LARS", 1.0, 0, 90, val=50), row("LARS", 2.0, 0, 80, val=60)])
    assert result.chosen_on == "val_acc1"
    assert result.table.loc[0, ["rate", "mean"]].tolist() == [2.0, 80.0]


def test_divergences_are_counted_and_avoided_and_unfinished_runs_do_not_enter_a_mean() -> None:
    rows = [
        row("LARS", 4.0, 0, 95),
        row("LARS", 4.0, 1, 10, status="diverged"),
        row("LARS", 1.0, 0, 80),
        row("LARS", 1.0, 1, 20, status="killed"),
    ]
    line = compare(rows).table.iloc[0]
    assert (line["rate"], line["mean"], line["diverged"], line["unfinished"], line["runs"]) == (1.0, 80.0, 1, 1, 4)


def test_a_loss_counts_downwards_and_fields_make_rows_and_columns() -> None:
    rows = [{**row("LARS", 1.0, 0, 1), "value": 0.5}, {**row("LARS", 2.0, 0, 1), "value": 0.1}]
    assert compare(rows, metric="test_loss").table.loc[0, "rate"] == 2.0
    wide = compare(
        [row("LARS", 1.0, 0, 90, batch_size=b) for b in (512, 1024)], rows=("optimizer",), columns=("batch_size",)
    )
    assert wide.pivot().columns.tolist() == [512, 1024]


def test_overlapping_intervals_and_single_seeds_settle_nothing() -> None:
    overlap = [row(o, 1.0, s, v) for o, vs in {"LARS": (90, 92), "SGD": (89, 92)}.items() for s, v in enumerate(vs)]
    assert "overlap" in compare(overlap).verdict.reason
    assert "no interval" in compare([row("LARS", 1.0, 0, 90), row("SGD", 1.0, 0, 80)]).verdict.reason
    tie = compare([row("LARS", 1.0, 0, 90), row("SGD", 1.0, 0, 90)]).verdict.reason
    assert tie.startswith("LARS, none, 512 and SGD, none, 512 have the same test_acc1")


def test_held_out_data_are_named_where_there_are_no_test_data() -> None:
    rows = [row(optimizer, 1.0, 0, np.nan, val=val) for optimizer, val in (("LARS", 50), ("SGD", 60))]
    reason = compare(rows).verdict.reason
    assert reason == "fewer than two settings have a test_acc1. val_acc1 is on record: compare --metric val_acc1."


def test_unknown_fields_and_metrics_list_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown field of --rows and --columns 'size' \(known: optimizer"):
        compare([row("LARS", 1.0, 0, 90)], rows=("size",))
    with pytest.raises(UserError, match=r"unknown --metric 'speed' \(known: test_acc1"):
        epoch_columns("speed")
    with pytest.raises(UserError, match="name optimizer twice"):
        compare([row("LARS", 1.0, 0, 90)], rows=("optimizer", "optimizer"))


def test_runs_that_differ_in_more_than_rate_and_seed_are_told_apart() -> None:
    def config(excluded_lr: float | None) -> dict[str, Any]:
        return {"config": {"optimizer": {"lr": 1.0, "excluded_lr": excluded_lr}, "place": {"port": excluded_lr}}}

    rows = [row("LARS", 1.0, seed, 90 + seed, **config(None)) for seed in (0, 1)]
    rows += [row("LARS", 1.0, 0, 70, **config(0.01)), row("SGD", 1.0, 0, 60, **config(0.5))]
    table = compare(rows).table
    assert table[["optimizer", "settings", "mean", "seeds"]].to_numpy().tolist() == [
        ["LARS", "excluded_lr –", 90.5, 2], ["LARS", "excluded_lr 0.01", 70.0, 1], ["SGD", "", 60.0, 1]
    ]  # fmt: skip
    assert "settings" not in compare(rows[:2]).table
    mixed = compare([row("LARS", 1.0, 0, 90, data="digits"), row("LARS", 1.0, 0, 10, data="cifar10")]).table
    assert mixed["settings"].tolist() == ["data digits", "data cifar10"]


def test_runs_of_one_seed_count_as_one() -> None:
    rows = [row("LARS", 1.0, 0, 90), row("LARS", 1.0, 0, 92), row("LARS", 1.0, 1, 95)]
    line = compare(rows).table.iloc[0]
    assert (line["mean"], line["seeds"], line["runs"]) == (93.0, 2, 3)
    assert line["half_width"] == pytest.approx(Mean.of([91, 95]).half_width)


def test_a_run_without_a_finished_epoch_has_no_figures() -> None:
    empty = pd.DataFrame({name: pd.Series(dtype=float) for name in ("epoch", "test_acc1", "val_acc1")})
    result = compare([run_row(RunFacts(name="x", optimizer="LARS"), empty, metric="test_acc1", target=None)] * 2)
    assert result.table["mean"].isna().all()


@pytest.mark.parametrize(
    ("metric", "columns"),
    [
        ("test_loss", ["epoch", "test_acc1", "test_loss", "val_loss"]),
        ("val_acc1", ["epoch", "test_acc1", "val_acc1"]),
        ("train_eval_acc1", ["epoch", "test_acc1", "train_eval_acc1"]),
    ],
)
def test_the_counterparts_of_a_metric_are_on_test_and_held_out_data(metric: str, columns: list[str]) -> None:
    assert epoch_columns(metric) == columns


def test_fields_that_some_runs_lack_leave_no_blanks_and_no_decimals() -> None:
    def config(excluded_lr: float) -> dict[str, Any]:
        return {"config": {"optimizer": {"lr": 1.0, "excluded_lr": excluded_lr}}}

    rows = [row("LARS", 1.0, 0, 90, **config(0.5))]
    rows += [row("SGD", 1.0, 0, value, **config(value)) for value in (70, 80)]
    rows.append({**row("AdamW", 1.0, 0, 0, batch_size=None), "value": np.nan})
    result = compare(rows)
    assert result.verdict.reason.startswith(
        "LARS, none, 512 has the best test_acc1, before SGD, none, excluded_lr 80, 512,"
    )
    assert [str(column) for column in result.pivot().columns] == ["512", "–"]
    assert result.pivot()["–"].tolist()[-1] == "–"
