"""Means over draws, by hand and by scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tvlars_probe.analyses.draws import ADDED, densities_over_draws, over_draws, sample_text

VALUES = [0.31, 0.40, 0.36, 0.29]


def drawn(values: Any, **told: Any) -> pd.DataFrame:
    """A figure measured on several draws of one measurement; without ``draw`` on one sample."""
    rows = pd.DataFrame({"value": np.asarray(values, float)})
    rows["draw"], rows["sample_id"] = np.arange(len(rows)), [f"s{i}" for i in range(len(rows))]
    common = {
        "measurement_id": "m", "created_at": pd.Timestamp("2026-01-01", tz="UTC"), "step": 7, "measure": "eigenvalue",
        "operator": "hessian", "scope": "all", "scope_kind": "all", "rank": 1, "error": 1e-3, "converged": True,
        "split": "train", "bn_mode": "eval", "engine": "lanczos", "samples": 128, "limit": np.nan, "epsilon": np.nan,
        "dimensions": np.nan, "loss": 0.5, "matvecs": 9, "seconds": 0.25,
    }  # fmt: skip
    return rows.assign(**{**common, **told})


def test_the_mean_has_its_standard_error_and_students_interval() -> None:
    (row,) = over_draws(drawn(VALUES)).to_dict("records")
    low, high = stats.t.interval(0.95, 3, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert row["value"] == pytest.approx(np.mean(VALUES))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["deviation"] == pytest.approx(np.std(VALUES, ddof=1))
    assert row["standard_error"] == pytest.approx(row["deviation"] / 2)
    assert (row["draws"], row["matvecs"], row["seconds"], row["sample"]) == (4, 36, 1.0, "s0 s1 s2 s3")


def test_two_equal_draws_have_an_interval_of_no_width() -> None:
    (row,) = over_draws(drawn([2.0, 2.0])).to_dict("records")
    assert (row["low"], row["value"], row["high"], row["deviation"]) == (2, 2, 2, 0)


def test_a_draw_that_is_no_number_is_left_out_of_the_mean() -> None:
    (row,) = over_draws(drawn([1.0, np.nan, 3.0])).to_dict("records")
    assert (row["value"], row["draws"]) == (2, 2)  # as many as the mean and its error are of
    assert row["standard_error"] == pytest.approx(1.0)


def test_draws_that_did_not_converge_are_counted() -> None:
    rows = drawn(VALUES, converged=[True, False, True, False], error=[1e-3, 0.2, 1e-3, 0.1])
    (row,) = over_draws(rows).to_dict("records")
    assert (row["converged"], row["not_converged"], row["error"]) == (False, 2, 0.2)
    (trace,) = over_draws(drawn(VALUES, measure="trace", rank=np.nan, converged=None)).to_dict("records")
    assert (trace["converged"], trace["not_converged"]) == (None, 0)


def test_figures_of_one_sample_stay_as_they_are() -> None:
    one = drawn([0.5], measurement_id="one", draw=None)
    found = over_draws(pd.concat([drawn(VALUES), one], ignore_index=True))
    alone = found.iloc[1]
    assert (alone["value"], alone["draws"], alone["sample"]) == (0.5, 1, "s0")
    assert alone[["standard_error", "deviation", "low", "high"]].isna().all()
    without = over_draws(one.drop(columns="draw"))
    assert without.loc[0, [*one.columns]].drop("draw").equals(one.loc[0].drop("draw"))


@pytest.mark.parametrize(
    "column", ["measurement_id", "step", "measure", "operator", "scope", "rank", "epsilon", "dimensions", "split",
               "bn_mode", "engine", "samples"],
)  # fmt: skip
def test_unlike_figures_are_never_joined(column: str) -> None:
    other = {"step": 8, "rank": -1, "epsilon": 5e-4, "dimensions": 100, "samples": 64}.get(column, "other")
    both = pd.concat([drawn([1.0, 3.0]), drawn([10.0, 30.0], **{column: other})], ignore_index=True)
    assert over_draws(both)["value"].tolist() == [2, 20]


def test_figures_come_in_order_of_time_whatever_the_order_of_parts() -> None:
    late = drawn([5.0], draw=None, measurement_id="late", created_at=pd.Timestamp("2026-02-01", tz="UTC"))
    found = over_draws(pd.concat([late, drawn(VALUES)], ignore_index=True))
    assert found["measurement_id"].tolist() == ["m", "late"]


def test_no_rows_give_no_rows_and_categories_become_strings() -> None:
    empty = over_draws(drawn(VALUES).iloc[:0])
    assert empty.empty
    assert {*ADDED} <= {*empty.columns}
    names = drawn(VALUES).astype({"operator": pd.CategoricalDtype(["effective", "hessian", "relative"])})
    assert over_draws(names)["operator"].tolist() == ["hessian"]


def densities(*grids: Any, **told: Any) -> pd.DataFrame:
    common = {"measurement_id": "m", "created_at": pd.Timestamp("2026-01-01", tz="UTC"), "step": 7, "error": 0.1,
              "operator": "hessian", "scope": "all", "split": "train", "bn_mode": "eval", "samples": 64}  # fmt: skip
    curves = [pd.DataFrame({"draw": i, "grid": grid, "density": 1.0 + i}) for i, grid in enumerate(grids)]
    return pd.concat(curves, ignore_index=True).assign(**{**common, **told})


def test_densities_of_draws_become_their_mean_on_a_grid_over_all_of_them() -> None:
    found = densities_over_draws(densities([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]))
    assert found["grid"].tolist() == [0, 1.5, 3]
    assert found["density"].tolist() == pytest.approx([0.5, 1.5, 1.0])  # zero beyond a draw's own grid
    assert found["error"].tolist() == pytest.approx([stats.sem(pair) for pair in ([1, 0], [1, 2], [0, 2])])
    assert {*found["draws"]} == {2}


def test_of_densities_measured_again_the_latest_stands_alone() -> None:
    again = densities([0.5, 1.5], measurement_id="b", draw=None, created_at=pd.Timestamp("2026-02-01", tz="UTC"))
    found = densities_over_draws(pd.concat([again, densities([0.0, 1.0])], ignore_index=True))
    assert found["grid"].tolist() == [0.5, 1.5]
    assert densities_over_draws(again.iloc[:0]).empty


def test_what_a_figure_was_measured_on_is_told_in_words() -> None:
    assert sample_text(1000, 1) == "on this sample of 1,000"
    assert sample_text(128, 10) == "mean of 10 samples of 128"
    assert sample_text(np.nan, 1, "a") == "on a sample of unknown size"
