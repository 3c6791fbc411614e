from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tvlars_probe.analyses.comparison import compare, epoch_columns, run_row
from tvlars_probe.analyses.comparison_verdict import optimism_text
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


def seeds_of(**accuracies: tuple[float, ...]) -> list[dict[str, object]]:
    """Runs at one rate, a seed for each accuracy."""
    return [row(o, 1.0, seed, value) for o, values in accuracies.items() for seed, value in enumerate(values)]


def test_small_differences_and_single_seeds_settle_nothing() -> None:
    near = compare(seeds_of(LARS=(90, 92), SGD=(89, 92))).verdict
    assert near.answer == "can't tell"
    assert (
        "LARS, schedule none, batch 512 leads, but isn't apart from SGD, schedule none, batch 512: 91.00 ± 13 against "
        "90.50 ± 19" in near.reason
    )
    assert "no interval" in compare([row("LARS", 1.0, 0, 90), row("SGD", 1.0, 0, 80)]).verdict.reason
    tie = compare([row("LARS", 1.0, 0, 90), row("SGD", 1.0, 0, 90)]).verdict.reason
    assert tie.startswith("LARS, schedule none, batch 512 and SGD, schedule none, batch 512 have the same test_acc1")


def test_held_out_data_are_named_where_there_are_no_test_data() -> None:
    rows = [row(optimizer, 1.0, 0, np.nan, val=val) for optimizer, val in (("LARS", 50), ("SGD", 60))]
    reason = compare(rows).verdict.reason
    assert reason == "no test_acc1 is on record. val_acc1 is: compare --metric val_acc1."
    nothing = compare([row(optimizer, 1.0, 0, np.nan) for optimizer in ("LARS", "SGD")]).verdict.reason
    assert nothing.endswith("A loop of your own records it by rec.log_epoch(epoch=..., test_acc1=...).")


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
        ["LARS", "excluded_lr unset", 90.5, 2], ["LARS", "excluded_lr 0.01", 70.0, 1], ["SGD", "", 60.0, 1]
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
        "LARS, schedule none, batch 512 has the best test_acc1, before SGD, schedule none, excluded_lr 80, batch 512,"
    )
    assert [str(column) for column in result.pivot().columns] == ["512", "–"]
    assert result.pivot()["–"].tolist()[-1] == "–"


def test_the_best_is_apart_from_each_other_setting() -> None:
    far = compare(seeds_of(LARS=(90, 91, 92), SGD=(80, 81, 82), AdamW=(70, 75, 71)))
    welch = stats.ttest_ind((90, 91, 92), (80, 81, 82), equal_var=False)
    low, high = welch.confidence_interval()
    assert far.verdict.answer == "LARS, schedule none, batch 512"
    assert "apart from the 2 others: 91.00 ± 2.5 against" in far.verdict.reason
    assert far.table.loc[1, ["gap", "gap_low", "gap_high"]].tolist() == pytest.approx([10, low, high])
    assert far.table["apart"].tolist() == [None, True, True]
    # Intervals that overlap may belong to means that are apart: two of ± 2.5 at a distance of 4.
    touching = compare(seeds_of(LARS=(90, 91, 92), SGD=(86, 87, 88)))
    assert touching.table["p"][1] == pytest.approx(stats.ttest_ind((90, 91, 92), (86, 87, 88)).pvalue)
    assert touching.verdict.answer == "LARS, schedule none, batch 512"


def test_a_setting_of_one_seed_far_behind_leaves_the_best_open() -> None:
    verdict = compare(seeds_of(LARS=(90, 91, 92), SGD=(80, 81, 82), AdamW=(70,))).verdict
    assert verdict.answer == "can't tell"
    assert verdict.reason.endswith("but with one seed there is no interval of AdamW, schedule none, batch 512.")


def test_the_choice_among_rates_widens_the_interval_by_its_optimism() -> None:
    """Two rates, two seeds: whichever seed chooses, the other one is at the worse rate."""
    rows = [
        row("LARS", lr, s, v) for lr, values in {1.0: (90, 94), 2.0: (93, 90)}.items() for s, v in enumerate(values)
    ]
    line = compare(rows).table.iloc[0]
    half = Mean.of([90, 94]).half_width
    # Seed 0 chooses rate 2, where seed 1 has 90; seed 1 chooses rate 1, where seed 0 has 90: 2 below the mean of 92.
    assert (line["mean"], line["optimism"], line["optimism_source"]) == (92, 2, "splits")
    assert line[["low", "high"]].tolist() == pytest.approx([92 - half - 2, 92 + half])
    losses = [{**r, "value": 100 - r["value"]} for r in rows]  # type: ignore[operator]
    line = compare(losses, metric="test_loss").table.iloc[0]
    assert (line["mean"], line["optimism"]) == (8, 2)
    assert line[["low", "high"]].tolist() == pytest.approx([8 - half, 8 + half + 2])


def test_a_setting_with_more_rates_has_no_advantage_by_them() -> None:
    """Its best mean is apart from the other setting's; what it has by its choice among nine rates doesn't count."""
    rng = np.random.default_rng(0)
    values = 90 + rng.normal(size=(9, 5))
    best = values[values.mean(axis=1).argmax()]
    other = best - 2.6 * best.std(ddof=1) * (2 / 5) ** 0.5
    assert stats.ttest_ind(best, other).pvalue < 0.05
    many = [row("LARS", 1.0 + rate, seed, value) for (rate, seed), value in np.ndenumerate(values)]
    result = compare([*many, *(row("SGD", 1.0, seed, value) for seed, value in enumerate(other))])
    assert result.table["optimism"][0] > 0.2
    assert result.verdict.answer == "can't tell"


def test_a_leader_of_which_runs_diverged_says_so() -> None:
    rows = [*seeds_of(LARS=(90, 91, 92), SGD=(80, 81, 82)), row("LARS", 1.0, 3, 10, status="diverged")]
    verdict = compare(rows).verdict
    assert verdict.answer == "LARS, schedule none, batch 512"
    assert verdict.reason.endswith("1 run of the leader diverged, and doesn't count in its mean.")


def test_what_the_choice_adds_is_told_in_a_sentence() -> None:
    assert optimism_text(compare(seeds_of(LARS=(90, 92), SGD=(80, 82))).table) == ""
    rows = [
        row("LARS", lr, s, v) for lr, values in {1.0: (90, 94), 2.0: (93, 90)}.items() for s, v in enumerate(values)
    ]
    told = optimism_text(compare(rows).table)
    assert told.startswith(
        "Up to 2 learning rates were tried for a setting: the best one's mean is too good by up to 2,"
    )
    assert "one seed can't tell" in optimism_text(compare([row("LARS", 1.0, 0, 90), row("LARS", 2.0, 0, 80)]).table)
    apart = [row("LARS", 1.0, 0, 90), row("LARS", 1.0, 1, 94), row("LARS", 2.0, 2, 80), row("LARS", 2.0, 3, 82)]
    assert "as the seeds' scatter allows" in optimism_text(compare(apart).table)


def test_the_columns_of_a_papers_table_are_in_order_of_their_numbers() -> None:
    """The best batch size comes first in the rows, and 64 before 512 in the columns."""
    rows = [row("LARS", 1.0, 0, value, batch_size=size) for size, value in ((512, 95), (64, 80), (1024, 90))]
    assert [*compare(rows).pivot().columns] == [64, 512, 1024]
