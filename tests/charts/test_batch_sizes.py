"""Charts of the noise scale and of the answers to how large the batch may be, from planted figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.batches.noise_rows import estimates, probe, rows
from tests.analyses.batches.test_batch_size import Bounds, Branched, Time, answers, scale
from tests.charts.specs import data_sets
from tvlars_probe.analyses.batches.noise_scale import LAYER_COLUMNS, NoiseScale, analyse_noise
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.charts.batch_sizes import answers_chart, time_chart
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.noise import noise_curve, noise_map
from tvlars_probe.errors import NothingToShowError

FACTS = RunFacts(name="made", optimizer="SGD", batch_size=64)


def noise_scale(*frames: pd.DataFrame, layers: pd.DataFrame | None = None) -> NoiseScale:
    none = pd.DataFrame(columns=list(LAYER_COLUMNS))
    return analyse_noise(pd.concat(frames, ignore_index=True), none if layers is None else layers, FACTS)


def training(steps: int = 100, **settings: Any) -> pd.DataFrame:
    return rows(*estimates(np.random.default_rng(0), steps, dimensions=60, **settings))


def drawn(chart: Any) -> list[dict[str, Any]]:
    return [row for data in data_sets(spec_of(chart)) for row in data]


def test_a_curve_holds_its_band_the_probes_and_the_own_batch() -> None:
    chart = noise_curve(noise_scale(training(), probe(50, 1.0, 100.0, (0.1, 5.0))))
    found = drawn(chart)
    assert {row["source"] for row in found if "source" in row} == {"training", "probe"}
    assert {"batch": 64, "text": "own batch: 64 samples"} in [
        {**row, "batch": int(row["batch"])} for row in found if "text" in row
    ]
    for row in (row for row in found if "bottom" in row):
        assert row["bottom"] <= row["simple_batch"] <= row["top"]
    spec = spec_of(chart)
    assert spec["title"]["text"].startswith("B_simple at step 84: ")
    assert "means over 30 recorded steps" in spec["title"]["subtitle"]


def test_an_interval_without_an_end_reaches_to_the_edge_and_has_no_line() -> None:
    chart = noise_curve(noise_scale(training(signal=0.0), probe(50, 1.0, 100.0, (0.1, 5.0))))
    spec = spec_of(chart)
    assert "up to the edge: no upper end" in spec["title"]["subtitle"]
    domain = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    opened = [row for row in drawn(chart) if row.get("is_open")]
    assert opened
    for row in opened:
        assert row["simple_batch"] is None
        assert row["top"] >= domain[1]


def test_a_single_window_is_a_point_with_a_bar() -> None:
    spec = spec_of(noise_curve(noise_scale(training(20))))
    assert [layer["mark"]["type"] for layer in spec["layer"][:2]] == ["rule", "point"]


def test_what_is_unknown_throughout_is_refused_with_the_remedy() -> None:
    with pytest.raises(NothingToShowError, match="average more steps"):
        noise_curve(noise_scale(rows([1.0], [2.0])))
    with pytest.raises(NothingToShowError, match="no tensor of made has a noise scale"):
        noise_map(noise_scale(training()))


def layers(values: dict[str, list[float]], source: str = "training") -> pd.DataFrame:
    entries = [
        {
            "step": 10 * k + 5, "first_step": 10 * k, "last_step": 10 * k + 9, "rows": 10, "source": source,
            "parameter": name, "gradient_square": 1.0, "noise_trace": value, "simple_batch": value, "low": 1.0,
            "high": math.inf if math.isnan(value) else 2 * value, "is_open": math.isnan(value),
        }
        for name, series in values.items() for k, value in enumerate(series)
    ]  # fmt: skip
    return pd.DataFrame(entries)


def test_a_map_greys_what_cannot_be_told_and_ends_with_the_last_window() -> None:
    tensors = layers({"a": [5.0, 50.0, 20.0], "b": [7.0, math.nan, 9.0]})
    spec = spec_of(noise_map(noise_scale(training(), layers=tensors)))
    shown, unknown = data_sets(spec)
    assert {row["parameter"] for row in shown} == {"a", "b"}
    assert unknown == [{"parameter": "b", "first": 10, "end": 20}]
    assert max(row["end"] for row in shown) == 30
    assert spec["title"]["text"] == "B_simple of every tensor"
    # Figures have their intervals.
    assert spec["title"]["subtitle"].startswith(
        "at the end from 9 (95 %: 1 to 18) in b to 20 (95 %: 1 to 40) in a; made"
    )
    assert "grey: |G|² can't be told from zero" in spec["title"]["subtitle"]


def test_answers_stand_on_one_axis_with_a_mark_for_no_upper_end() -> None:
    result = answers(scale(100, 10), time=Time(Bounds(150.0, 90.0, math.inf)), branches=Branched(64.0, 512.0))
    chart = answers_chart(result)
    spec = spec_of(chart)
    assert spec["title"]["text"] == "How large may the batch be? 90 to 120 samples"
    assert "▶ no upper end" in spec["title"]["subtitle"]
    found = {row["label"]: row for row in drawn(chart)}
    assert [*found] == ["noise scale: a, step 7", "time to target: 12 runs", "branches: 5 runs, step 40"]
    assert found["branches: 5 runs, step 40"]["value"] is None
    with pytest.raises(NothingToShowError, match="every answer is unknown"):
        answers_chart(answers(time=Time(Bounds(math.nan, math.nan, math.nan))))


def test_time_to_target_is_drawn_with_its_fit() -> None:
    batches = np.array([16, 64, 256, 1024, 4096])
    table = pd.DataFrame({
        "batch_size": batches, "samples": 1000 * (1 + batches / 150), "seed": 0, "lr": 0.1, "run": "r",
        "is_best": [True] * 4 + [False],
    })  # fmt: skip
    chart = time_chart(Time(Bounds(150.0, 90.0, 300.0), e_min=Bounds(1000.0, 900.0, 1100.0), table=table))  # type: ignore[arg-type]
    points, fit, rule = data_sets(spec_of(chart))
    assert [row["batch_size"] for row in points] == [16, 64, 256, 1024]
    assert fit[0]["samples"] == pytest.approx(1000 * (1 + 16 / 150), rel=1e-4)
    assert rule == [{"batch_size": 150.0}]
    assert spec_of(chart)["title"]["text"] == "Critical batch by time to target: 150 (95 %: 90 to 300)"
    with pytest.raises(NothingToShowError, match="no run has reached the target"):
        time_chart(Time(Bounds(1.0, 1.0, 1.0), table=table.assign(samples=math.nan)))  # type: ignore[arg-type]
    with pytest.raises(NothingToShowError, match="no sweep over batches"):
        time_chart(Time(Bounds(1.0, 1.0, 1.0), table=table.head(1)))  # type: ignore[arg-type]
