from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import tvlars_probe
from tvlars_probe.errors import RunDirectoryError, TraceError, UserError
from tvlars_probe.traces import parts as parts_module
from tvlars_probe.traces import writer as writer_module
from tvlars_probe.traces.datasets import row_groups_of
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.schema import LAYERS, TABLES

if TYPE_CHECKING:
    from pathlib import Path


def journal(path: Path, steps: int = 6, **facts: Any) -> Journal:
    """A run of two parameters, written but not finished."""
    run = Journal.create(path, Manifest(run_id=f"{path.name}.id", **facts))
    run.begin_segment(0)
    for step in range(steps):
        run.append("steps", {"step": [step], "loss": [1.0 / (step + 1)]})
        run.append(
            "layers",
            {
                "step": [step, step],
                "parameter": pa.array(["a", "b"]).dictionary_encode(),
                "weight_norm": np.array([1.0, 2.0], np.float32) + step,
                "trust_ratio": pa.array([0.5, 0.0], pa.float32(), mask=np.array([False, True])),
            },
        )
        if step % 2:
            run.flush(step + 1)
    return run


def test_a_frame_has_the_rows_in_order(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    frame = tvlars_probe.open_run(tmp_path / "r").layers()
    assert list(frame.columns) == list(LAYERS.names)
    assert frame["step"].tolist() == [s for s in range(6) for _ in "ab"]
    assert frame["parameter"].tolist() == ["a", "b"] * 6
    assert frame["run"].unique().tolist() == ["r.id"]
    assert frame["weight_norm"].dtype == np.float32
    assert frame["trust_ratio"].isna().tolist() == [False, True] * 6


def test_columns_and_rows_are_chosen_before_reading(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    run = tvlars_probe.open_run(tmp_path / "r")
    frame = run.layers(["step", "weight_norm"], steps=(2, 3), parameters=["b"])
    assert frame.to_dict("list") == {"step": [2, 3], "weight_norm": [4.0, 5.0]}
    assert run.frame("steps", ["step"], where=pc.field("loss") < 0.3)["step"].tolist() == [3, 4, 5]


def test_pandas_and_duckdb_read_it_without_us(tmp_path: Path) -> None:
    for name in ("one", "two"):
        journal(tmp_path / name).finish("completed")
    assert len(pd.read_parquet(tmp_path / "one" / "trace" / "layers")) == 12
    rows = duckdb.sql(
        f"select run, count(*) from '{tmp_path}/*/trace/steps/*.parquet' group by run order by run"
    ).fetchall()
    assert rows == [("one.id", 6), ("two.id", 6)]


def test_inf_and_nan_are_kept_and_differ_from_null(tmp_path: Path) -> None:
    run = Journal.create(tmp_path / "r", Manifest(run_id="r"))
    run.begin_segment(0)
    run.append("steps", {"step": [0, 1, 2, 3], "loss": pa.array([math.nan, math.inf, -math.inf, None])})
    run.flush(4)
    column = pq.read_table(list_parts(tmp_path / "r" / "trace" / "steps")[0].path)["loss"]
    assert column.null_count == 1
    assert math.isnan(column[0].as_py())
    assert [column[1].as_py(), column[2].as_py()] == [math.inf, -math.inf]


def test_each_footer_names_version_run_table_and_units(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    schema = pq.read_schema(list_parts(tmp_path / "r" / "trace" / "layers")[0].path)
    assert json.loads(schema.metadata[b"tvlars_probe"]) == {"schema_version": 1, "table": "layers", "run_id": "r.id"}
    assert schema.field("weight_norm").metadata[b"unit"] == b"1"
    assert pa.types.is_dictionary(schema.field("parameter").type)


def test_floats_are_stored_byte_split_under_zstd(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    group = pq.read_metadata(list_parts(tmp_path / "r" / "trace" / "layers")[0].path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["weight_norm"].encodings
    assert "RLE_DICTIONARY" in columns["parameter"].encodings
    assert {c.compression for c in columns.values()} == {"ZSTD"}


def test_several_runs_are_read_as_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        journal(tmp_path / "deep" / name).finish("completed")
    for paths in (tmp_path, str(tmp_path / "deep" / "*"), [tmp_path / "deep" / "one", tmp_path / "deep" / "two"]):
        runs = tvlars_probe.open_runs(paths)
        frame = runs.layers(["run", "parameter"])
        assert [run.name for run in runs] == ["one", "two"]
        assert frame["run"].value_counts().to_dict() == {"one.id": 12, "two.id": 12}
        assert frame["parameter"].dtype == "category"


def test_runs_of_one_name_are_told_apart_and_a_run_given_twice_is_read_once(tmp_path: Path) -> None:
    for folder in ("a/lars", "b/lars", "b/deep/lars", "b/tvlars"):
        journal(tmp_path / folder).release()
    runs = tvlars_probe.open_runs([tmp_path, tmp_path / "a" / "lars", tmp_path / "b" / ".." / "a" / "lars"])
    assert sorted(run.name for run in runs) == ["a/lars", "b/lars", "deep/lars", "tvlars"]
    assert tvlars_probe.open_run(tmp_path / "a" / "lars").name == "lars"


def test_a_run_without_rows_gives_empty_frames(tmp_path: Path) -> None:
    run = Journal.create(tmp_path / "r", Manifest(run_id="r"))
    run.begin_segment(0)
    for table in TABLES:
        frame = tvlars_probe.open_run(tmp_path / "r").frame(table)
        assert frame.empty
        assert list(frame.columns) == list(TABLES[table].names)


def test_a_running_run_can_be_read_and_a_killed_one_told(tmp_path: Path) -> None:
    run = journal(tmp_path / "r", steps=5)
    reader = tvlars_probe.open_run(tmp_path / "r")
    assert reader.status == "running"
    assert reader.steps()["step"].tolist() == [0, 1, 2, 3]  # up to the last flush
    run._directory.release()  # as when its process dies
    assert reader.status == "killed"


def test_a_column_of_no_table_lists_the_known(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    with pytest.raises(UserError, match=r"unknown column of steps 'norm' \(known: run, step"):
        tvlars_probe.open_run(tmp_path / "r").steps(["norm"])
    with pytest.raises(UserError, match=r"unknown column of steps 'parameter'"):
        tvlars_probe.open_run(tmp_path / "r").frame("steps", parameters=["a"])


def test_a_column_that_an_old_trace_lacks_is_named(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    for part in list_parts(tmp_path / "r" / "trace" / "layers"):
        table = pq.read_table(part.path)
        pq.write_table(table.drop_columns(["phi"]), part.path)
    run = tvlars_probe.open_run(tmp_path / "r")
    with pytest.raises(TraceError, match="has no column phi in layers: an older version recorded it"):
        run.layers(["step", "phi"])
    assert run.layers()["phi"].isna().all()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    journal(tmp_path / "r").finish("completed")
    part = list_parts(tmp_path / "r" / "trace" / "layers")[-1].path
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(TraceError, match=f"damaged.*{part.name}"):
        tvlars_probe.open_run(tmp_path / "r").layers()


def test_a_reader_survives_compaction_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = journal(tmp_path / "r")
    reader = tvlars_probe.open_run(tmp_path / "r")
    refuse = type(reader)._refuse_missing
    compacted: list[bool] = []

    def compact_first(*args: Any) -> None:
        if not compacted:
            compacted.append(run._writer.compact("layers"))
        refuse(*args)

    monkeypatch.setattr(type(reader), "_refuse_missing", compact_first)
    assert len(reader.layers()) == 12
    assert compacted == [True]


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_run_is_said(tmp_path: Path, what: str) -> None:
    path = tmp_path / "r"
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("x")
    for opening in (tvlars_probe.open_run, tvlars_probe.open_runs):
        with pytest.raises(RunDirectoryError, match=r"no run|not a run directory"):
            opening(path)


def test_parts_stay_few_however_often_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MOST_PARTS", 20)
    run = Journal.create(tmp_path / "r", Manifest(run_id="r"))
    run.begin_segment(0)
    for step in range(100):
        run.append("steps", {"step": [step]})
        run.flush(step + 1)
    assert len(list_parts(tmp_path / "r" / "trace" / "steps")) <= 21
    assert tvlars_probe.open_run(tmp_path / "r").steps()["step"].tolist() == list(range(100))


def test_a_flush_is_due_by_rows_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: clock[0])
    writer = writer_module.TraceWriter(tmp_path, "r")
    clock[0] += 100
    assert writer.due  # rows may wait elsewhere
    writer.flush()
    assert not writer.due
    writer.append("steps", {"step": [0]})
    assert not writer.due
    clock[0] += writer_module.FIRST_FLUSH_SECONDS + 1.0
    assert writer.due
    writer.flush()
    monkeypatch.setattr(writer_module, "MOST_PENDING_ROWS", 3)
    writer.append("steps", {"step": [1, 2, 3]})
    assert writer.due


def test_a_finished_run_is_read_in_order_of_steps_and_one_layer_from_few_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_GROUP_BY_PARAMETER", 40)
    run = Journal.create(tmp_path / "r", Manifest(run_id="r"))
    run.begin_segment(0)
    for start in range(0, 200, 50):
        names = pa.array(["stem", "body", "head"] * 50).dictionary_encode()
        steps = np.repeat(np.arange(start, start + 50), 3)
        run.append("layers", {"step": steps, "parameter": names, "weight_norm": np.arange(150.0)})
        run.flush(start + 50)
    running = tvlars_probe.open_run(tmp_path / "r").layers()
    run.finish("completed")
    finished = tvlars_probe.open_run(tmp_path / "r")
    assert len(list_parts(tmp_path / "r" / "trace" / "layers")) == 1
    pd.testing.assert_frame_equal(finished.layers(), running)
    pd.testing.assert_frame_equal(finished.layers(["weight_norm"]), running[["weight_norm"]])
    body = finished.layers(["step", "weight_norm"], parameters=["body"])
    assert body["step"].tolist() == list(range(200))
    (part,) = list_parts(tmp_path / "r" / "trace" / "layers")
    assert pq.read_metadata(part.path).num_row_groups == 15
    dataset = ds.dataset([str(part.path)], schema=LAYERS.arrow_schema())
    (few,) = row_groups_of(dataset, ["body"]).get_fragments()
    assert few.num_row_groups == 5


def test_arrays_in_a_configuration_become_lists(tmp_path: Path) -> None:
    manifest = Manifest(run_id="r", config={"widths": np.arange(3), "rate": np.float32(0.5), "one": np.array([2.0])})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path).config == {"widths": [0, 1, 2], "rate": 0.5, "one": [2.0]}
