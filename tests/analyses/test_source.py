"""What analyses read: steps at equal distances where matrices would not fit in memory, and the noise of a phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from tvlars_probe.analyses.grid import LayerGrid, Rows
from tvlars_probe.analyses.of_runs import comparison_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.errors import TraceError
from tvlars_probe.runs import open_run
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

STEPS, TENSORS = 20, 3


@pytest.fixture
def source(tmp_path: Path) -> Source:
    names = [f"w{tensor}" for tensor in range(TENSORS)]
    Manifest(run_id="r", parameters={"train": [{"name": name} for name in names]}).save(tmp_path)
    writer = TraceWriter(tmp_path / "trace", "r")
    rows = {
        "step": np.repeat(np.arange(STEPS), TENSORS),
        "parameter": pa.array(names * STEPS).dictionary_encode(),
        "weight_norm": np.arange(STEPS * TENSORS, dtype=np.float32),
    }
    writer.append("layers", rows)
    writer.flush()
    return Source(open_run(tmp_path))


@pytest.mark.parametrize(("most", "stride"), [(60, 1), (59, 2), (30, 2), (29, 3), (20, 3), (3, 20)])
def test_as_many_steps_are_read_as_fit(source: Source, monkeypatch: pytest.MonkeyPatch, most: int, stride: int) -> None:
    monkeypatch.setattr("tvlars_probe.analyses.source.MOST_VALUES", most)
    grid = source.layers(["weight_norm"])
    assert grid.steps.tolist() == [*range(0, STEPS, stride)]
    expected = np.arange(STEPS * TENSORS).reshape(STEPS, TENSORS)[::stride]
    assert (grid["weight_norm"] == expected).all()
    assert source.facts.stride == stride
    assert (f"one of every {stride} recorded steps was read" in source.facts.title) == (stride > 1)


def test_what_a_caller_makes_of_the_matrices_counts_too(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.analyses.source.MOST_VALUES", 60)
    assert len(source.layers(["weight_norm"], beside=3).steps) == 5


def test_tensors_that_dont_fit_even_in_a_few_steps_are_refused() -> None:
    names = [f"w{tensor}" for tensor in range(10)]
    piece = Rows(np.zeros(10, np.int64), np.arange(10), names, {"x": np.zeros(10, np.float32)})
    with pytest.raises(TraceError, match="rows of more than 9 tensors in 1 steps, which don't fit in memory"):
        LayerGrid.from_rows([piece], np.array([0]), most_tensors=9)
    assert len(LayerGrid.from_rows([piece], np.array([0]), most_tensors=10).parameters) == 10


def test_an_empty_table_has_no_stride(tmp_path: Path) -> None:
    Manifest(run_id="r").save(tmp_path)
    source = Source(open_run(tmp_path))
    assert source.layers(["weight_norm"]).steps.size == 0
    assert source.facts.stride == 1


def noisy_phases(path: Path) -> None:
    """Two phases of four steps, with rows of ``noise`` of the whole model and of two tensors; a probe in ``noise/``."""
    scopes = ("all", "w0", "w1")
    tables = {name: [{"name": "w0"}, {"name": "w1"}] for name in ("pretrain", "linear")}
    Manifest(run_id="r", parameters=tables).save(path)  # type: ignore[arg-type]
    steps, count = np.repeat(np.arange(8), 3), 24
    rows = {
        "step": steps, "phase": ["pretrain"] * 12 + ["linear"] * 12, "source": ["training"] * count,
        "scope": [*scopes] * 8, "scope_kind": ["all", "tensor", "tensor"] * 8, "gradient_square": steps + 1.0,
        "noise_trace": 10.0 * steps,
    }  # fmt: skip
    writer = TraceWriter(path / "trace", "r")
    writer.append("noise", rows)
    writer.flush()
    after = TraceWriter(path, "r")
    after.append("noise", {
        "step": [2], "phase": ["pretrain"], "source": ["probe"], "scope": ["all"], "scope_kind": ["all"],
        "gradient_square": [9.0], "noise_trace": [9.0],
    })  # fmt: skip
    after.flush()


def test_noise_is_that_of_the_phase_and_of_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_phases(tmp_path)
    run = open_run(tmp_path)
    first, second = Source(run, "pretrain"), Source(run, "linear")
    rows = first.noise(("step", "source", "gradient_square"))
    assert rows["step"].tolist() == [0, 1, 2, 2, 3]
    assert rows["source"].tolist() == ["training", "training", "training", "probe", "training"]
    assert second.noise(("gradient_square",))["gradient_square"].tolist() == [5, 6, 7, 8]
    tensors = second.noise_of_tensors(np.array([4, 6]))
    assert sorted(zip(tensors["parameter"], tensors["gradient_square"], strict=True)) == [
        ("w0", 5.5), ("w0", 7.5), ("w1", 5.5), ("w1", 7.5),
    ]  # fmt: skip
    monkeypatch.setattr("tvlars_probe.analyses.source.MOST_UPDATES", 3)
    with pytest.raises(TraceError, match="more than 3 rows of the whole model"):
        first.noise(("step",))


def test_a_run_without_noise_has_no_rows_of_it(source: Source) -> None:
    assert source.lacks("noise")
    assert len(source.noise(("step", "gradient_square"))) == 0
    assert len(source.noise_of_tensors(np.empty(0, np.int64))) == 0


@pytest.mark.parametrize(("planned", "recorded", "found"), [(3.0, [0.5, 2.0, 1.0], 3.0), (None, [0.5, 2.0, 1.0], 2.0),
                                                           (None, [], 0.25)])  # fmt: skip
def test_a_peak_that_no_manifest_tells_is_the_highest_rate_on_record(
    tmp_path: Path, planned: float | None, recorded: list[float], found: float
) -> None:
    """Of a loop of one's own: its group's rate is what the schedule has left of it after the last step."""
    Manifest(run_id="r", peak_lr=planned, groups=[{"optimizer": "SGD", "lr": 0.25}]).save(tmp_path)
    if recorded:
        writer = TraceWriter(tmp_path / "trace", "r")
        writer.append("steps", {"step": np.arange(len(recorded)), "lr": np.array(recorded)})
        writer.flush()
    source = Source(open_run(tmp_path))
    assert source.peak_lr == found
    [told] = comparison_of([source], rows=["optimizer"]).rates["rate"]
    assert told == found
