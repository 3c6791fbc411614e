"""A spike of one step stays visible however long the run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.charts.specs import data_sets
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.charts.binning import (
    MOST_CELLS,
    MOST_LAYERS,
    MOST_ROWS,
    cells,
    coarser,
    edges,
    envelope,
    extremes,
    thinned,
)
from tvlars_probe.charts.binning import inline as inlined
from tvlars_probe.charts.curves import loss_bins, loss_curves

MILLION = 1_000_000


def spike(at: int, height: float = 500.0) -> np.ndarray:
    values = np.ones(MILLION)
    values[at] = height
    return values


@pytest.mark.parametrize("at", [0, 123_456, MILLION - 1])
@pytest.mark.parametrize("height", [500.0, 0.002])
def test_a_spike_of_one_step_in_a_million_is_in_the_envelope(at: int, height: float) -> None:
    binned = envelope(np.arange(MILLION), spike(at, height), bins=400)
    assert len(binned) <= 400
    reached = binned["high"].max() if height > 1 else binned["low"].min()
    assert reached == height
    kept = extremes(spike(at, height), edges(MILLION, 400))
    assert at in kept


def test_it_is_in_the_loss_chart_of_one_run_and_of_a_hundred() -> None:
    binned = loss_bins(pd.DataFrame({"step": np.arange(MILLION), "loss": spike(777_777)}))
    for count in (1, 100):
        spec = loss_curves([(RunFacts(name=f"run{i}"), binned) for i in range(count)]).to_dict()
        rows = next(data_sets(spec))
        assert len(rows) <= MOST_ROWS
        assert max(row["high"] for row in rows) == 500.0
        assert "peaks at 500" in spec["title"]["text"]


def test_it_is_in_a_heat_map_whose_layers_are_grouped() -> None:
    layers, steps = 450, 2_000
    values = np.full((steps, layers), 0.01, np.float32)
    values[1234, 321] = 7.0
    found = cells(np.arange(steps), [f"layer{i}" for i in range(layers)], values)
    frame = found.shown
    assert len(frame) <= MOST_CELLS
    assert frame["parameter"].nunique() <= MOST_LAYERS
    hottest = frame.loc[frame["value"].idxmax()]
    assert hottest["value"] == pytest.approx(7.0)
    assert hottest["first"] <= 1234 < hottest["end"]
    first, last = hottest["parameter"].split(" … ")
    assert int(first.removeprefix("layer")) <= 321 <= int(last.removeprefix("layer"))
    assert "layer321" in found.groups[hottest["parameter"]]
    assert [name for members in found.groups.values() for name in members] == [f"layer{i}" for i in range(layers)]


@pytest.mark.parametrize(("layers", "dip"), [(1, 54_320), (1, 54_322), (5, 54_321), (125, 54_322), (300, 54_321)])
def test_a_spike_and_a_dip_in_one_bin_are_both_shown(layers: int, dip: int) -> None:
    values = np.random.default_rng(0).lognormal(0, 0.1, (100_000, layers)).astype(np.float32)
    values[54_321, 0] = 1000.0
    values[dip, min(layers - 1, 1)] = 1e-6
    frame = cells(np.arange(100_000), [f"layer{i}" for i in range(layers)], values).shown
    assert len(frame) <= MOST_CELLS
    for value in (1000.0, 1e-6):
        (row,) = frame[np.isclose(frame["value"], value)].to_dict("records")
        assert abs(row["first"] - 54_321) < 1000
    whole = frame.groupby("parameter").agg({"first": "min", "end": "max"})
    assert {*whole["first"]} == {0}
    assert {*whole["end"]} == {100_000}


def test_infinite_values_and_nan_have_cells_of_their_own() -> None:
    values = np.ones((50, 3))
    values[7, 1], values[30:, 1], values[:, 2] = np.inf, np.nan, np.nan
    found = cells(np.arange(50), ["a", "b", "never"], values)
    assert {*found.unshown["parameter"]} == {"b"}
    assert found.unshown["first"].tolist() == [7, *range(30, 50)]
    assert found.order == ["a", "b"]


@pytest.mark.parametrize(("curves", "rows"), [(1, 10_000), (2, 5_000), (1_000, 10), (1_700, 3), (6_000, 2), (3, 4)])
def test_curves_fit_a_chart_however_many_and_long_they_are(curves: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    whole = [pd.DataFrame({"x": np.arange(rows), "y": rng.normal(size=rows)}) for _ in range(curves)]
    few = thinned(whole, "y")
    assert sum(map(len, few)) <= MOST_ROWS
    assert all(len(part) and part["x"].iloc[-1] == rows - 1 for part in few)
    if curves <= 2:
        assert few[0]["y"].min() == whole[0]["y"].min()
        assert few[0]["y"].max() == whole[0]["y"].max()
        assert few[0]["x"].iloc[0] == 0


def test_a_coarser_envelope_is_that_of_the_values_themselves() -> None:
    values = np.random.default_rng(0).lognormal(size=4096)
    fine = envelope(np.arange(4096), values, bins=512)
    coarse, direct = coarser(fine, 64), envelope(np.arange(4096), values, bins=64)
    for column in ("step", "low", "high", "high_step"):
        assert coarse[column].tolist() == direct[column].tolist()
    assert coarser(fine, 1000) is fine


def test_bins_cover_every_step_once() -> None:
    cuts = edges(1001, 320)
    assert (cuts[0], cuts[-1]) == (0, 1001)
    assert {*np.diff(cuts)} <= {3, 4}
    assert edges(0, 10).tolist() == [0]


def test_nan_and_infinity_become_null_and_too_many_rows_are_refused() -> None:
    data = inlined(pd.DataFrame({"a": [1.23456789, np.nan, np.inf], "b": [True, False, True], "c": [1, 2, 3]}))
    assert data.values == [
        {"a": 1.2346, "b": True, "c": 1},
        {"a": None, "b": False, "c": 2},
        {"a": None, "b": True, "c": 3},
    ]
    with pytest.raises(ValueError, match="5001 rows"):
        inlined(pd.DataFrame({"a": np.zeros(5001)}))


def test_a_grid_arranged_in_pieces_is_that_of_one_frame() -> None:
    from tvlars_probe.analyses.grid import Rows

    rng = np.random.default_rng(1)
    step, code = np.repeat(np.arange(50), 3), np.tile(np.arange(3), 50)
    keep = rng.random(150) > 0.1
    step, code, values = step[keep], code[keep], rng.normal(size=150)[keep].astype(np.float32)
    names = ["c", "a", "b"]
    frame = pd.DataFrame({"step": step, "parameter": pd.Categorical.from_codes(code, names), "x": values})
    whole = LayerGrid.from_frame(frame, order=["a", "b"])
    pieces = []
    for first in range(0, len(step), 17):
        part = slice(first, first + 17)
        shuffled = list(dict.fromkeys(np.array(names)[code[part]].tolist()))  # each piece has a dictionary of its own
        own = np.array([shuffled.index(names[i]) for i in code[part]])
        pieces.append(Rows(step[part], own, shuffled, {"x": values[part]}))
    arranged = LayerGrid.from_rows(pieces, np.unique(step), order=["a", "b"])
    assert arranged.parameters == whole.parameters == ("a", "b", "c")
    assert np.array_equal(arranged["x"], whole["x"], equal_nan=True)
    blocks = list(arranged.blocks(cells=100))
    assert [block.parameters for block in blocks] == [("a", "b"), ("c",)]
    assert np.array_equal(np.hstack([block["x"] for block in blocks]), whole["x"], equal_nan=True)


def test_a_heat_map_of_infinities_alone_marks_them_and_shows_no_cell() -> None:
    arranged = cells(np.arange(4), ["w"], np.full((4, 1), np.inf))
    assert len(arranged.shown.dropna(subset="value")) == 0
    assert len(arranged.unshown) == 4
