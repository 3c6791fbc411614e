from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tvlars_probe.traces.arrays import numbers, rows_at, with_nan


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None, 3], pa.int64()),
        pa.array([1.5, 2.5, None], pa.float32()),
        pa.array([None, None], pa.float64()),
        pa.array([7, 8], pa.timestamp("us", tz="UTC")),
        pa.array([1, None, 3, None, 5, 6, 7, 8, 9, 10], pa.int32()).slice(3, 6),
        pa.array([], pa.float64()),
    ],
    ids=["integers", "floats", "nulls", "times", "a slice", "none"],
)
def test_values_are_those_that_arrow_tells(values: pa.Array) -> None:
    plain = values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values
    for column in (values, pa.chunked_array([values, values])):
        expected = plain.to_pylist() * (1 if column is values else 2)
        found, there = numbers(column)
        assert [v if is_there else None for v, is_there in zip(found.tolist(), there.tolist(), strict=True)] == expected


def test_nulls_become_nan_and_nan_stays() -> None:
    column = pa.chunked_array([pa.array([1.0, None, float("nan")])])
    assert np.array_equal(with_nan(column), [1.0, np.nan, np.nan], equal_nan=True)


def test_rows_are_taken_in_the_order_asked_for() -> None:
    assert rows_at(np.array([2, 0]), pa.table({"a": [5, 6, 7]})).to_pydict() == {"a": [7, 5]}
    assert rows_at(np.arange(6)[::-2], pa.table({"a": [*range(6)]})).to_pydict() == {"a": [5, 3, 1]}


def test_following_a_run_imports_no_pandas() -> None:
    """That takes longer than all the rest."""
    code = (
        "import sys, tvlars_probe.commands.watch_lines, tvlars_probe.live.live_runs, pyarrow.parquet\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'altair') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
