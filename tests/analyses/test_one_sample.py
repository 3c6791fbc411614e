"""Which sample makes a curve."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from tests.analyses.test_draws import drawn
from tvlars_probe.analyses.draws import over_draws
from tvlars_probe.analyses.one_sample import COLUMNS, curves_of_one_sample

MODE = ("eval", "train")


def measured(steps: Any, values: Any, day: int = 1, **told: Any) -> pd.DataFrame:
    """One sample at several steps, on a day of January."""
    made = {"created_at": pd.Timestamp(2026, 1, day, tz="UTC"), "measurement_id": f"m{day}", "draw": None}
    return drawn(values, **{**made, "sample_id": "a", "step": steps, **told})


def chosen(*frames: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return curves_of_one_sample(over_draws(pd.concat(frames, ignore_index=True)), MODE)


@pytest.mark.parametrize(
    "other",
    [{"sample_id": "b"}, {"samples": 1000}, {"engine": "pyhessian"}, {"bn_mode": "train"}, {"split": "test"}],
    ids=str,
)
def test_figures_of_another_sample_are_told_and_not_joined(other: dict[str, Any]) -> None:
    curves, samples = chosen(measured([0, 10, 20], [1, 2, 3]), measured([20, 30], [50, 60], day=2, **other))
    assert curves["value"].tolist() == [1, 2, 3]
    assert samples["is_curve"].tolist() == [True, False]
    assert samples[["steps", "last_step", "value"]].to_numpy().tolist() == [[3, 20, 3], [2, 30, 60]]


def test_a_step_measured_again_on_the_sample_has_the_latest_figure() -> None:
    """Whatever the order of the parts: those of a measurement of all checkpoints come first."""
    curves, samples = chosen(measured([0, 10, 20], [1, 2, 3], day=3), measured([10, 20], [7, 8], day=2))
    assert curves["value"].tolist() == [1, 2, 3]
    assert samples["repeated"].tolist() == [2]


def test_of_equally_many_steps_draws_go_before_one_sample_and_ours_before_pyhessian() -> None:
    steps = [0, 10]
    means = pd.concat([drawn([4.0, 6.0], step=step) for step in steps])
    curves, samples = chosen(means, measured(steps, [1, 2], day=9))
    assert curves["value"].tolist() == [5, 5]
    assert curves["draws"].tolist() == [2, 2]
    ours, theirs = measured(steps, [1, 2]), measured(steps, [3, 4], day=2, engine="pyhessian")
    assert chosen(theirs, ours)[0]["value"].tolist() == [1, 2]
    later = measured(steps, [8, 9], day=3, sample_id="b")
    assert chosen(later, ours)[0]["value"].tolist() == [8, 9]
    assert len(samples) == 2


def test_each_operator_has_a_sample_of_its_own() -> None:
    relative = measured([0, 10], [3, 4], operator="relative", sample_id="b", samples=64)
    curves, samples = chosen(measured([0, 10], [1, 2]), relative)
    assert curves["operator"].tolist() == ["hessian", "hessian", "relative", "relative"]
    assert samples["is_curve"].all()


def test_samples_without_a_name_are_one() -> None:
    curves, samples = chosen(measured([0], [1], sample_id=None), measured([5], [2], sample_id=None))
    assert curves["value"].tolist() == [1, 2]
    assert len(samples) == 1


def test_no_figure_gives_no_curve() -> None:
    curves, samples = chosen(measured([0], [1]).iloc[:0])
    assert curves.empty
    assert tuple(samples[samples["is_curve"]].columns) == COLUMNS
    of_another_mode = chosen(measured([0], [1], bn_mode="train"))
    assert of_another_mode[0].empty
    assert of_another_mode[1]["is_curve"].tolist() == [False]
