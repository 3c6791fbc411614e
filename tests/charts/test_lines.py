"""Many runs in one chart: a line per setting, a panel per rate, and a cross for each run that diverged."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import losses
from tests.charts.specs import data_sets, encodings
from tvlars_probe.analyses.comparison import compare, run_row
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.charts import theme
from tvlars_probe.charts.comparisons import comparison_chart, rate_sensitivity
from tvlars_probe.charts.curves import accuracy_curves, loss_bins, loss_curves
from tvlars_probe.charts.export import file_content, spec_of
from tvlars_probe.charts.lines import MOST_LINES, MOST_PANELS

if TYPE_CHECKING:
    from collections.abc import Sequence

GONE = {"status": "diverged", "finding": {"step": 7, "loss": None}, "steps_per_epoch": 3}


def grid(rates: Sequence[float], seeds: int = 3, **further: Any) -> list[RunFacts]:
    return [
        RunFacts(**{"name": f"{o}-{r:g}-{s}", "optimizer": o, "peak_lr": r, "seed": s, **further})
        for o, r, s in itertools.product(("LARS", "TVLARS"), rates, range(seeds))
    ]


def losses_of(runs: Sequence[RunFacts]) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return spec_of(loss_curves([(f, loss_bins(losses(generator.uniform(1, 2, 30)))) for f in runs]))


def accuracies_of(runs: Sequence[RunFacts], *values: float) -> dict[str, Any]:
    epochs = pd.DataFrame({"epoch": range(len(values)), "test_acc1": [*values]})
    return spec_of(accuracy_curves([(f, epochs) for f in runs]))


def crosses(spec: dict[str, Any]) -> list[dict[str, Any]]:
    plots = [part for panel in spec.get("concat", [spec]) for part in panel["layer"]]
    marks = [part for part in plots if part["mark"].get("shape") == "cross"]
    return [row for part in marks for row in spec["datasets"][part["data"]["name"]]]


def test_the_line_is_the_mean_over_seeds_and_the_band_reaches_from_the_lowest_to_the_highest() -> None:
    runs = grid([8.0], seeds=3)[:3]
    values = [np.array([1.0, 4.0]), np.array([10.0, 4.0]), np.array([100.0, 32.0])]
    spec = spec_of(loss_curves([(f, loss_bins(losses(v))) for f, v in zip(runs, values, strict=True)]))
    rows = next(data_sets(spec))
    assert [row["value"] for row in rows] == pytest.approx([10, 8])
    assert [(row["low"], row["high"], row["seeds"]) for row in rows] == [(1, 100, 3), (4, 32, 3)]
    assert "line: geometric mean over seeds; band: lowest to highest of all seeds" in spec["title"]["subtitle"]
    assert spec["title"]["subtitle"].startswith("3 runs;")


def test_a_handful_of_lines_share_a_plot_and_more_have_a_panel_for_each_rate() -> None:
    few = losses_of(grid([8.0, 32.0]))
    assert "concat" not in few
    assert {row["line"] for row in next(data_sets(few))} == {
        "LARS, peak 8", "LARS, peak 32", "TVLARS, peak 8", "TVLARS, peak 32",
    }  # fmt: skip
    rates = [1.0, 8.0, 32.0]
    assert 2 * len(rates) > MOST_LINES
    for spec in (losses_of(grid(rates)), accuracies_of(grid(rates), 10, 50)):
        assert [panel["title"]["text"] for panel in spec["concat"]] == ["peak rate 1", "peak rate 8", "peak rate 32"]
        scales = [d["scale"] for channel, d in encodings(spec) if channel in ("x", "y")]
        assert len({str(scale["domain"]) for scale in scales}) == 2  # one of x, one of y: panels can be compared
        assert {row["line"] for rows in data_sets(spec) for row in rows} == {"LARS", "TVLARS"}


def test_many_rates_are_thinned_evenly_with_both_ends_and_that_is_said() -> None:
    spec = losses_of(grid([float(k) for k in range(1, 31)], seeds=1))
    titles = [panel["title"]["text"] for panel in spec["concat"]]
    assert len(titles) == MOST_PANELS
    assert (titles[0], titles[-1]) == ("peak rate 1", "peak rate 30")
    assert "18 peak rates in between not drawn" in spec["title"]["subtitle"]


def test_a_run_that_diverged_ends_in_a_cross_and_is_no_part_of_the_mean() -> None:
    runs = [*grid([8.0])[:2], RunFacts(name="gone", optimizer="LARS", peak_lr=8.0, seed=2, **GONE)]
    values = [np.ones(20), np.ones(20), np.append(np.ones(7), 1e30)]
    spec = spec_of(loss_curves([(f, loss_bins(losses(v))) for f, v in zip(runs, values, strict=True)]))
    assert {row["value"] for row in next(data_sets(spec))} == {1}
    assert [(row["run"], row["step"]) for row in crosses(spec)] == [("gone", 7)]
    top = next(d["scale"]["domain"][1] for channel, d in encodings(spec) if channel == "y")
    assert top == 1
    spec = accuracies_of(runs, 10, 20)
    assert [(row["run"], row["epoch"]) for row in crosses(spec)] == [("gone", 3)]  # its steps 6 to 8
    assert "✕ diverged" in spec["title"]["subtitle"]


def test_settings_of_which_every_run_diverged_are_crosses_beside_the_scale() -> None:
    kinds = {"LARS": 90.0, "TVLARS": 80.0, "SGD": 1.0}
    rows = [
        run_row(
            RunFacts(
                name=f"{o}{seed}", optimizer=o, peak_lr=1.0, seed=seed, status="diverged" if o == "SGD" else "completed"
            ),
            pd.DataFrame({"epoch": [0], "test_acc1": [value + seed]}),
            metric="test_acc1",
            target=None,
        )
        for (o, value), seed in itertools.product(kinds.items(), range(3))
    ]
    result = compare(rows)
    spec = spec_of(comparison_chart(result))
    assert {row["optimizer"]: row["gone"] for row in next(data_sets(spec))} == {"LARS": 0, "TVLARS": 0, "SGD": 1}
    on_scale = [part for part in spec["layer"] if "field" in part["encoding"]["x"]]
    assert all(part["transform"] == [{"filter": "!datum.gone"}] for part in on_scale)
    assert "✕ every run diverged" in spec["title"]["subtitle"]
    told = next(data_sets(spec_of(rate_sensitivity(result))))
    assert {row["optimizer"] for row in told} == {"LARS", "TVLARS"}


def lines_of(logs: tuple[float, float], most: int = theme.MOST_TICKS) -> list[str]:
    axis = theme.log_axis([10.0 ** logs[0], 10.0 ** logs[1]], most).to_dict()
    return [f"{value:g}" for value in axis["values"]]


def test_logarithmic_axes_have_lines_at_1_2_5_and_at_powers_of_ten_over_many_decades() -> None:
    assert lines_of((0, 2)) == ["1", "2", "5", "10", "20", "50", "100", "200", "500"]
    assert lines_of((-1, 0.7)) == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    assert lines_of((-3, 3)) == ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]
    assert len(lines_of((-30, 30))) <= theme.MOST_TICKS + 1
    assert lines_of((-2, 2), 7) == ["0.01", "0.1", "1", "10", "100"]


def test_the_picture_has_these_ticks() -> None:
    """Vega's own scale and axis, read from the drawn chart."""
    spec = loss_curves([(RunFacts(name="a"), loss_bins(losses(np.array([0.3, 1.0, 40.0]))))])
    svg = file_content(spec, Path("chart.svg")).decode()
    texts = re.findall(r">([^<]*)</text>", svg)
    assert [text for text in texts if text in ("0.5", "1", "2", "5", "10", "20")] >= ["0.5", "1", "2", "5", "10", "20"]


def test_optimizers_differ_in_shape_as_well_as_in_colour() -> None:
    shapes = theme.optimizer_shape(theme.OPTIMIZER_COLOURS).to_dict()["scale"]["range"]
    assert len({*shapes}) == len(theme.OPTIMIZER_COLOURS)
    assert "cross" not in shapes  # it marks what diverged
