"""Curves of many runs, of long ones, and of runs that went wrong: what titles say, and what can be told apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import losses
from tests.charts.specs import data_sets, encodings
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.charts.binning import MOST_ROWS
from tvlars_probe.charts.curves import accuracy_curves, loss_bins, loss_curves
from tvlars_probe.charts.export import file_content, spec_of
from tvlars_probe.charts.theme import number


def lars(name: str, **further: Any) -> RunFacts:
    return RunFacts(**{"name": name, "optimizer": "LARS", "schedule": "none", **further})


def loss_title(*values: np.ndarray, **further: Any) -> str:
    runs = [(lars(f"run{i}", **further), loss_bins(losses(v))) for i, v in enumerate(values)]
    return str(spec_of(loss_curves(runs))["title"]["text"])


@pytest.mark.parametrize(("runs", "epochs"), [(1, 10_000), (2, 5_000), (1_000, 10)])
def test_accuracies_fit_the_chart_and_end_at_the_last_epoch(runs: int, epochs: int) -> None:
    frame = pd.DataFrame({"epoch": np.arange(epochs), "test_acc1": np.linspace(10, 90, epochs)})
    rows = next(data_sets(spec_of(accuracy_curves([(lars(f"run{i}"), frame) for i in range(runs)]))))
    assert len(rows) <= MOST_ROWS
    assert max(row["epoch"] for row in rows) == epochs


def test_epochs_are_whole_numbers_from_one() -> None:
    frame = pd.DataFrame({"epoch": [0, 1, 2], "test_acc1": [10.0, 20.0, 30.0]})
    spec = spec_of(accuracy_curves([(lars("run"), frame)]))
    assert [row["epoch"] for row in next(data_sets(spec))] == [1, 2, 3]
    axes = [definition["axis"] for channel, definition in encodings(spec) if channel == "x"]
    assert all(axis["tickMinStep"] == 1 for axis in axes)
    svg = file_content(accuracy_curves([(lars("run"), frame)]), Path("chart.svg")).decode()
    assert [text for text in re.findall(r">([^<]*)</text>", svg) if text in ("1", "2", "3")] == ["1", "2", "3"]
    assert frame["epoch"].tolist() == [0, 1, 2]


def test_a_title_says_how_far_a_loss_must_rise_and_where_it_is_highest() -> None:
    falling = np.linspace(2, 1, 50_000)
    assert loss_title(falling) == "No loss rises more than 5 % above its first value"
    rising = falling.copy()
    rising[54_321 % 50_000] = 2.08
    assert loss_title(rising).startswith("No loss rises more than 5 %")
    rising[4_321] = 1e30
    assert loss_title(rising) == "The loss of run0 peaks at 1e+30, at step 4,321"
    assert loss_title(10 * falling, np.append(falling, 7.0)) == "The loss of run1 peaks at 7, at step 50,000"


def test_the_first_loss_that_is_not_finite_is_named_and_marked() -> None:
    values = np.linspace(2, 1, 5_000)
    values[[3_210, 4_000]] = np.inf
    assert loss_title(values) == "The loss of run0 is not finite at step 3,210"
    values[3_210:] = np.nan
    spec = spec_of(loss_curves([(lars("run0", finding={"step": 3_210, "loss": None}), loss_bins(losses(values)))]))
    assert spec["title"]["text"] == "The loss of run0 is not finite at step 3,210"
    assert [row["step"] for row in list(data_sets(spec))[-1]] == [3_210]
    for loss in (1.5, None):  # a norm's, in a step whose loss is finite or wasn't told
        of_norm = {"step": 3, "loss": loss, "tensor": "a", "quantity": "grad_norm"}
        assert "not finite" not in loss_title(np.linspace(2, 1, 50), finding=of_norm)


def test_every_run_has_dashes_of_its_own_as_long_as_there_are_enough() -> None:
    frame = pd.DataFrame({"epoch": [0, 1], "test_acc1": [10.0, 20.0]})

    def dash(*runs: RunFacts) -> dict[str, Any]:
        spec = spec_of(accuracy_curves([(run, frame) for run in runs]))
        return next(definition for channel, definition in encodings(spec) if channel == "strokeDash")

    alike = dash(lars("a"), lars("b"), RunFacts(name="c", optimizer="SGD"))
    assert alike["scale"]["domain"] == ["a", "b", "c"]
    assert len({str(pattern) for pattern in alike["scale"]["range"]}) == 3  # in grey, too
    assert dash(lars("a"), lars("b", schedule="cosine"))["scale"]["domain"] == ["a", "b"]
    assert dash(*(lars(f"run{i}") for i in range(20)))["field"] == "schedule"


def test_a_loss_of_one_step_is_a_point() -> None:
    one, many = ((lars(f"run{n}"), loss_bins(losses(np.ones(n)))) for n in (1, 9))
    spec = spec_of(loss_curves([one, many]))
    assert spec["layer"][-1]["mark"]["type"] == "point"
    assert [row["run"] for row in list(data_sets(spec))[-1]] == ["run1"]
    assert [layer["mark"]["type"] for layer in spec_of(loss_curves([many]))["layer"]] == ["area", "line"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.609942985595094e30, "1.61e+30"), (54_321.0, "54,321"), (0.123456, "0.123"), (-2e9, "-2e+09")],
)
def test_numbers_in_titles_are_short(value: float, text: str) -> None:
    assert number(value) == text
