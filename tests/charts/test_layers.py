"""Heat maps and rates of long runs, of many layers, and of values that have no place on a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.analyses.synthetic import lars_facts, layers
from tests.charts.specs import data_sets
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.rates import decompose
from tvlars_probe.charts import theme
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.layers import decomposition, heat_map


def heat(values: np.ndarray) -> dict[str, Any]:
    steps, tensors = values.shape
    names = tuple(f"{i}.weight" for i in range(tensors))
    return spec_of(heat_map("grad_norm", values, np.arange(steps), names, lars_facts(names)))


def test_a_title_names_the_step_of_the_highest_value_whatever_else_is_in_its_bin() -> None:
    values = np.ones((100_000, 3), np.float32)
    values[54_321, 1], values[54_322, 1] = 1000.0, 1e-6
    spec = heat(values)
    assert spec["title"]["text"].endswith("highest in 1.weight, 1,000 at step 54,321")
    shown = {row["value"] for row in next(data_sets(spec))}
    assert {1000.0, 1e-6} <= shown


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_marked_and_named(bad: float) -> None:
    values = np.ones((1000, 3), np.float32)
    values[321:, 2] = bad
    spec = heat(values)
    assert "red: infinite, NaN or missing (first in 2.weight, at step 321)" in spec["title"]["subtitle"]
    values[321:, 0] = bad
    assert "(first in 0.weight and 2.weight, at step 321)" in heat(values)["title"]["subtitle"]
    marked = list(data_sets(spec))[-1]
    assert {row["parameter"] for row in marked} == {"2.weight"}
    assert spec["layer"][-1]["mark"]["color"] == theme.BAD_COLOUR
    assert "red" not in heat(np.ones((10, 3)))["title"]["subtitle"]


def test_a_chart_of_groups_tells_what_is_in_them() -> None:
    groups = heat(np.ones((10, 400)))["usermeta"]["groups"]
    assert [name for members in groups.values() for name in members] == [f"{i}.weight" for i in range(400)]


def rates(tensors: int, steps: int) -> dict[str, Any]:
    names = tuple(f"{i}.weight" for i in range(tensors))
    ones = {name: np.ones(steps) for name in names}
    facts = lars_facts(names)
    return spec_of(decomposition(decompose(LayerGrid.from_frame(layers(ones, ones, np.ones(steps)), names), facts)))


def test_rates_of_many_tensors_say_how_many_are_drawn() -> None:
    spec = rates(500, 3)
    assert "200 of 500 tensors, evenly chosen" in spec["title"]["subtitle"]
    drawn = [*dict.fromkeys(row["parameter"] for row in next(data_sets(spec)))]
    assert drawn == spec["usermeta"]["only"]
    assert len(drawn) == 200
    assert "usermeta" not in rates(200, 3)


@pytest.mark.parametrize(("shares", "said"), [((1, 4), "1 or 4"), ((0.5, 4, 1), "0.5 to 4"), ((1, 1), "1 ×")])
def test_a_title_names_the_peak_rates_of_all_groups(shares: tuple[float, ...], said: str) -> None:
    names = tuple(f"{i}.weight" for i in range(len(shares)))
    ones = {name: np.ones(3) for name in names}
    frame = layers(ones, ones, np.ones(3))
    for name, share in zip(names, shares, strict=True):
        frame.loc[frame["parameter"] == name, "lr"] *= np.float32(share)
    spec = spec_of(decomposition(decompose(LayerGrid.from_frame(frame, names), lars_facts(names))))
    assert spec["title"]["text"].startswith(f"Effective rate = peak lr {said}")


def test_rates_of_one_step_are_points() -> None:
    assert rates(2, 1)["spec"]["layer"][0]["mark"]["point"] is True
