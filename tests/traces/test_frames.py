"""Frames of pandas, polars and Arrow: the same rows, and what is said of an engine that isn't there."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tvlars_probe.errors import UserError
from tvlars_probe.runs import open_run, open_runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = ("layers", "steps", "epochs", "curvature", "noise", "findings")


@pytest.mark.parametrize("table", TABLES)
def test_engines_give_the_same_rows(table: str, trained: Callable[..., Path]) -> None:
    for runs in (open_run(trained("lars")), open_runs([trained("lars"), trained("tvlars")])):
        read = getattr(runs, table)
        rows, frame, fast = read(engine="arrow"), read(), read(engine="polars")
        assert (type(rows), type(frame), type(fast)) == (pa.Table, pd.DataFrame, pl.DataFrame)
        assert fast.to_dict(as_series=False) == rows.to_pydict()
        pd.testing.assert_frame_equal(frame, rows.to_pandas())
        assert read(engine="pandas", steps=(1, 2)).step.between(1, 2).all()


def test_rows_are_chosen_alike(trained: Callable[..., Path]) -> None:
    run = open_run(trained("lars"))
    chosen = {"steps": (2, 5), "parameters": ["0.weight"]}
    rows = run.layers(["step", "trust_ratio"], engine="polars", **chosen)
    assert rows["step"].to_list() == [2, 3, 4, 5]
    assert rows["trust_ratio"].to_list() == run.layers(["trust_ratio"], **chosen).trust_ratio.to_list()


def test_one_name_stands_for_a_list_of_one_and_an_opened_run_for_its_path(trained: Callable[..., Path]) -> None:
    run = open_run(trained("lars"))
    one, listed = run.layers("step", steps=3, parameters="0.weight"), run.layers(["step"], parameters=["0.weight"])
    assert one["step"].tolist() == run.layers("step", steps=np.int64(3), parameters="0.weight")["step"].tolist() == [3]
    assert run.rows("steps", "step").column_names == open_runs(run).rows("steps", "step").column_names == ["step"]
    assert listed["step"].tolist() == run.steps("step")["step"].tolist()
    assert [each.path for each in open_runs(run)] == [run.path]
    assert open_run(run).path == run.path


def test_an_opened_run_is_no_pattern(trained: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a1", "a[1]"):
        shutil.copytree(trained("lars"), tmp_path / name)
    assert [run.name for run in open_runs(open_run(tmp_path / "a[1]"))] == ["a[1]"]


def test_names_of_runs_read_together_are_one_category(trained: Callable[..., Path]) -> None:
    runs = open_runs([trained("lars"), trained("tvlars")])
    names = runs.layers(["run", "parameter"], steps=(0, 0))
    assert {*names.run.cat.categories} == {run.manifest.run_id for run in runs}
    assert names.parameter.tolist() == [*open_run(trained("lars")).layers(["parameter"], steps=(0, 0)).parameter] * 2


def test_no_runs_have_no_rows() -> None:
    assert type(open_runs([])).__name__ == "Runs"
    assert open_runs([]).layers(["step"], engine="arrow").num_rows == 0
    assert open_runs([]).layers(["step"]).empty


def test_an_engine_is_known_and_installed(trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(trained("lars"))
    with pytest.raises(UserError, match=r"unknown engine 'spark' \(known: pandas, polars, arrow\)"):
        run.steps(engine="spark")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UserError, match=r"engine='polars' needs the package polars: pip install polars"):
        run.steps(engine="polars")
