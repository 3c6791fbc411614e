"""One extreme value stretches no axis, and no line crosses a gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import lars_facts, layers, losses
from tests.charts.specs import data_sets, encodings
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.rates import decompose
from tvlars_probe.charts.binning import MOST_CELLS, cells, pieces
from tvlars_probe.charts.curves import accuracy_curves, loss_bins, loss_curves
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.layers import decomposition, heat_map
from tvlars_probe.charts.limits import Limits
from tvlars_probe.errors import NothingToShowError

FALLING = 2.3 * 0.95 ** np.arange(60)


def loss_chart(*values: np.ndarray, **further: Any) -> dict[str, Any]:
    facts = [RunFacts(**{"name": f"run{i}", "optimizer": "LARS", **further}) for i in range(len(values))]
    return spec_of(loss_curves([(f, loss_bins(losses(v))) for f, v in zip(facts, values, strict=True)]))


def y_scale(spec: dict[str, Any]) -> dict[str, Any]:
    return next(d["scale"] for channel, d in encodings(spec) if channel == "y")


def triangles(spec: dict[str, Any], shape: str) -> list[dict[str, Any]]:
    """The rows of the marks at an edge."""
    marks = [layer for layer in spec["layer"] if layer["mark"].get("shape") == shape]
    return [row for layer in marks for row in spec["datasets"][layer["data"]["name"]]]


def test_a_loss_of_zero_leaves_the_axis_logarithmic_and_is_marked_at_its_foot() -> None:
    values = FALLING.copy()
    values[[20, 40]] = 0.0
    spec = loss_chart(values)
    scale = y_scale(spec)
    assert scale["type"] == "log"
    assert scale["domain"] == [values[values > 0].min(), values.max()]
    assert [row["step"] for row in triangles(spec, "triangle-down")] == [20, 40]
    assert "▼ zero or below the axis" in spec["title"]["subtitle"]
    assert "▼" not in loss_chart(FALLING)["title"]["subtitle"]


def test_losses_that_are_negative_have_a_linear_axis() -> None:
    assert y_scale(loss_chart(np.linspace(2, -1, 60)))["type"] == "linear"
    few = FALLING.copy()
    few[30] = -1e-3  # one of sixty
    assert y_scale(loss_chart(few))["type"] == "log"
    assert y_scale(loss_chart(np.zeros(5)))["type"] == "linear"


@pytest.mark.parametrize("diverged", [[2.3, 1e18], [2.3, *[1e9] * 59], [2.3, 1e5, 1e30, *[50.0] * 40, np.inf]])
def test_a_run_that_diverged_flattens_no_other(diverged: list[float]) -> None:
    spec = loss_chart(FALLING, 1.1 * FALLING, np.array(diverged))
    low, high = y_scale(spec)["domain"]
    assert low == FALLING.min()
    assert high <= 2.6e3  # a thousand times the calm runs' own height
    beyond = triangles(spec, "triangle-up")
    assert {row["run"] for row in beyond} == {"run2"}
    assert max(row["high"] for row in beyond) == max(v for v in diverged if np.isfinite(v))
    assert "▲ beyond the axis" in spec["title"]["subtitle"]


def test_a_diverged_run_by_itself_is_shown_as_far_as_it_went() -> None:
    values = np.geomspace(2.3, 1e12, 40)
    assert y_scale(loss_chart(values))["domain"] == pytest.approx([2.3, 1e12])


def test_a_spike_has_its_place_on_the_axis() -> None:
    values = FALLING.copy()
    values[30] = 500.0
    assert y_scale(loss_chart(values))["domain"][1] == 500.0


def test_a_linear_axis_is_not_stretched_either() -> None:
    values = np.linspace(1, -1, 100)
    values[50] = -1e9
    low, high = y_scale(loss_chart(values))["domain"]
    assert -20 < low < -1
    assert high == 1


@pytest.mark.parametrize("values", [[], [np.nan] * 3, [np.inf] * 3])
def test_without_a_finite_loss_there_is_no_chart(values: list[float]) -> None:
    with pytest.raises(NothingToShowError, match=r"no (finite )?loss is on record"):
        loss_chart(np.array(values))


def test_limits_pass_over_what_is_no_number_and_are_none_without_any() -> None:
    limits = Limits.of([[np.nan, 1.0, 2.0, np.inf, -1.0, 0.0]])
    assert limits is not None
    assert (limits.low, limits.high) == (1.0, 2.0)
    assert limits.within([np.nan, 1.5, 0.0]).tolist() == [False, True, False]
    assert Limits.of([[0.0, -1.0, np.nan]]) is None
    assert Limits.of([[0.0, -1.0]], is_log=False) is not None


@pytest.mark.parametrize(
    ("steps", "stretches"),
    [
        ([], []),
        ([7], [1]),
        (range(0, 100, 10), [10]),
        ([*range(10), *range(500, 510)], [10, 10]),
        ([*range(4), 500, *range(900, 904)], [4, 1, 4]),
        ([*range(10), 10, 13, 16, 20, 25, 32, 40, 50, 63, 79, 100, 126, 158], [23]),  # ten in each decade
    ],
)
def test_a_stretch_ends_where_steps_are_missing(steps: Any, stretches: list[int]) -> None:
    found = pieces(np.array([*steps]))
    assert np.bincount(found).tolist() == stretches if len(found) else stretches == []


def test_no_line_crosses_steps_without_a_loss_and_a_single_one_is_a_point() -> None:
    values = np.full(300, np.nan)
    values[[*range(100), 150, *range(200, 300)]] = 1.0
    spec = loss_chart(values)
    rows = pd.DataFrame(next(data_sets(spec)))
    assert rows.groupby("piece")["step"].agg(["min", "max"]).to_numpy().tolist() == [[0, 99], [150, 150], [200, 299]]
    for curve in spec["layer"][:2]:
        assert [detail["field"] for detail in curve["encoding"]["detail"]] == ["line", "piece"]
    points = next(
        layer for layer in spec["layer"] if layer["mark"] == {"type": "point", "filled": True, "size": 40, "opacity": 1}
    )
    assert [row["step"] for row in spec["datasets"][points["data"]["name"]]] == [150]


def test_no_line_crosses_epochs_that_are_missing() -> None:
    frame = pd.DataFrame({"epoch": [*range(10), *range(60, 70)], "test_acc1": 50.0})
    rows = pd.DataFrame(next(data_sets(spec_of(accuracy_curves([(RunFacts(name="run"), frame)])))))
    assert rows.groupby("piece").size().tolist() == [10, 10]


@pytest.mark.parametrize("tensors", [2, 150, 700])
def test_a_heat_map_is_empty_where_steps_are_missing(tensors: int) -> None:
    steps = np.array([*range(0, 2_000, 2), *range(50_000, 52_000, 2)])
    frame = cells(steps, [f"{i}" for i in range(tensors)], np.ones((2_000, tensors))).shown
    assert len(frame) <= MOST_CELLS
    early, late = frame[frame["first"] < 10_000], frame[frame["first"] > 10_000]
    assert (early["end"].max(), late["first"].min()) == (2_000, 50_000)


def test_zero_has_a_colour_of_its_own_and_one_extreme_value_takes_none_from_the_others() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.3, (200, 4))
    values[:, 3], values[20, 1] = 0.0, 1e25
    names = tuple("abcd")
    spec = spec_of(heat_map("grad_norm", values, np.arange(200), names, lars_facts(names)))
    assert spec["title"]["text"].endswith("highest in b, 1e+25 at step 20")
    assert "grey: zero" in spec["title"]["subtitle"]
    (colour,) = [d for channel, d in encodings(spec) if channel == "color"]
    assert colour["scale"]["domain"][1] < 1e4
    assert colour["scale"]["clamp"]
    zeros = list(data_sets(spec))[-1]
    assert {row["parameter"] for row in zeros} == {"d"}


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_heat_map_without_a_value_above_zero_is_none(value: float) -> None:
    with pytest.raises(NothingToShowError, match="zero, not finite, or not on record"):
        heat_map("grad_norm", np.full((9, 2), value), np.arange(9), ("a", "b"), lars_facts(("a", "b")))


def rates(grad: np.ndarray, lr: np.ndarray, *, without: range = range(0)) -> dict[str, Any]:
    names = ("a", "b")
    rows = layers(dict.fromkeys(names, np.ones(len(lr))), {"a": grad, "b": np.ones(len(lr))}, lr)
    rows = rows[~((rows["parameter"] == "a") & rows["step"].isin(without))]
    return spec_of(decomposition(decompose(LayerGrid.from_frame(rows, names), lars_facts(names))))


def test_a_rate_far_beyond_the_others_is_cut_and_marked() -> None:
    grad = np.ones(100)
    grad[50] = 1e-20
    spec = rates(grad, np.ones(100))
    assert "▲▼ beyond the axis" in spec["title"]["subtitle"]
    lines, *marks = spec["spec"]["layer"]
    assert "clamp(datum.factor" in lines["transform"][0]["calculate"]
    assert {mark["mark"]["shape"] for mark in marks} == {"triangle-up", "triangle-down"}
    assert len(rates(np.ones(100), np.ones(100))["spec"]["layer"]) == 1


def test_rates_of_zero_and_missing_steps_are_told_and_no_line_crosses_them() -> None:
    lr = np.ones(100)
    lr[:3] = 0.0
    spec = rates(np.ones(100), lr, without=range(40, 60))
    assert "not drawn: 6 rates of 200, zero" in spec["title"]["subtitle"]
    rows = pd.DataFrame(next(data_sets(spec)))
    assert rows[rows["parameter"] == "a"].groupby("piece")["step"].max().tolist() == [39, 99]
    with pytest.raises(NothingToShowError, match="every rate is zero"):
        rates(np.ones(9), np.zeros(9))
