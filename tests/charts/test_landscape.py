"""The plane around a minimum: any number of points, cells without gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.charts.specs import data_sets
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.landscape import analyse_landscape
from tvlars_probe.charts.binning import MOST_CELLS
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.landscape import landscape_map


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
