"""The plane around a minimum: any number of points, cells without gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.charts.specs import data_sets, encodings
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.landscape import analyse_landscape
from tvlars_probe.charts.binning import MOST_CELLS
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.landscape import landscape_line, landscape_map
from tvlars_probe.charts.theme import BAD_COLOUR


def plane(points: int) -> dict[str, Any]:
    axis = np.unique([*np.linspace(-1, 1, points).round(12), 0.0])
    alpha, beta = (grid.ravel() for grid in np.meshgrid(axis, axis))
    rows = pd.DataFrame({"alpha": alpha, "beta": beta, "loss": 1 + alpha**2 + beta**2, "acc1": 50.0})
    rows = rows.assign(measurement_id="m", created_at=0, step=1, run2=None, split="train", bn_mode="x", seed=0)
    return spec_of(landscape_map(analyse_landscape(rows, RunFacts(name="run"))))


@pytest.mark.parametrize("points", [3, 4, 10, 31, 201, 402])
def test_cells_fill_the_plane_without_gap_or_overlap(points: int) -> None:
    spec = plane(points)
    rows = pd.DataFrame(next(data_sets(spec)))
    assert len(rows) <= MOST_CELLS
    assert ((rows["alpha"] == 0) & (rows["beta"] == 0)).sum() == 1
    for point, before, after in (("alpha", "left", "right"), ("beta", "bottom", "top")):
        cells = rows[[point, before, after]].drop_duplicates().sort_values(point)
        assert cells[after].tolist()[:-1] == cells[before].tolist()[1:]
        assert ((cells[before] < cells[point]) & (cells[point] < cells[after])).all()


def test_a_plane_of_too_many_points_is_thinned_and_says_so() -> None:
    assert "every 2nd of 201 × 201 points" in plane(201)["title"]["subtitle"]
    assert "every 3rd of 403 × 403 points" in plane(402)["title"]["subtitle"]
    assert "every" not in plane(31)["title"]["subtitle"]


def line(loss: Any, run2: str | None = None) -> dict[str, Any]:
    alpha = np.linspace(-1, 1, len(loss))
    rows = pd.DataFrame({"alpha": alpha, "beta": None, "loss": loss, "acc1": 50.0})
    rows = rows.assign(measurement_id="m", created_at=0, step=1, run2=run2, split="train", bn_mode="x", seed=0)
    return spec_of(landscape_line(analyse_landscape(rows, RunFacts(name="run"))))


def marks(spec: dict[str, Any]) -> dict[str, list[float]]:
    """α of the marks at the edges, by their shape."""
    return {
        layer["mark"]["shape"]: [row["alpha"] for row in spec["datasets"][layer["data"]["name"]]]
        for layer in spec["layer"]
        if "shape" in layer["mark"]
    }


def test_what_has_no_place_on_the_axis_of_a_line_is_marked_where_it_is() -> None:
    loss = 1 + np.linspace(-1, 1, 21) ** 2
    loss[[0, 20]], loss[1], loss[15] = np.nan, 1e25, 0.0
    spec = line(loss)
    assert marks(spec) == {"cross": [-1, 1], "triangle-up": [-0.9], "triangle-down": [0.5]}
    for word in ("✕ not finite", "▲ beyond the axis", "▼ zero or below"):
        assert word in spec["title"]["subtitle"]
    assert next(d["scale"]["domain"] for channel, d in encodings(spec) if channel == "y")[1] < 1e4
    assert marks(line(1 + np.linspace(-1, 1, 21) ** 2)) == {}


def test_points_of_a_plane_that_are_not_finite_are_red_and_within_it() -> None:
    alpha, beta = (grid.ravel() for grid in np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]))
    loss = np.where((alpha == 0) & (beta == 0), 45.0, np.nan)
    rows = pd.DataFrame({"alpha": alpha, "beta": beta, "loss": loss, "acc1": 50.0})
    rows = rows.assign(measurement_id="m", created_at=0, step=1, run2=None, split="train", bn_mode="x", seed=0)
    spec = spec_of(landscape_map(analyse_landscape(rows, RunFacts(name="run"))))
    told, lost = data_sets(spec)
    assert (len(told), len(lost)) == (1, 8)
    assert spec["layer"][1]["mark"]["color"] == BAD_COLOUR
    assert "red: not finite" in spec["title"]["subtitle"]


def test_the_ends_of_a_line_are_named_so_that_they_differ() -> None:
    end = "-large-uncased-whole-word-masking-linear-warmup-batch32k-seed0-attempt2"
    rows = pd.DataFrame({"alpha": [0.0, 0.5, 1.0], "beta": None, "loss": [1.0, 2.0, 1.0], "acc1": 50.0})
    rows = rows.assign(measurement_id="m", created_at=0, step=1, run2=f"b{end}", split="train", bn_mode="x", seed=0)
    spec = spec_of(landscape_line(analyse_landscape(rows, RunFacts(name=f"a{end}"))))
    (title,) = {d["title"] for channel, d in encodings(spec) if channel == "x"}
    first, second = title.removeprefix("α: 0 is ").split(", 1 is ")
    assert first != second
    assert len(title) < 110
