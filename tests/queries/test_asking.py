"""Answers of `tvlars_probe.query`, compared with DuckDB's own over the same parquet files, and with pandas."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tvlars_probe
from tests.live.recording import begin, layers, steps
from tvlars_probe.admission import limits
from tvlars_probe.errors import RunDirectoryError, TraceError, UserError
from tvlars_probe.queries.asking import ask
from tvlars_probe.traces.parts import list_parts

if TYPE_CHECKING:
    from pathlib import Path

QUERIES = [
    "select run, parameter, max(trust_ratio), count(*), count(trust_ratio) from layers group by all order by all",
    "select count(*) from layers",
    "select count(l) from layers l",
    "select * from layers order by run, step, parameter",
    "select columns('(run|step|.*_norm)') from layers order by all",
    "select * from (select step, median(loss) from steps where isfinite(loss) group by step) order by step",
    "select l.run, s.loss, l.lr from layers l join steps s using (run, step) where parameter = 'body' order by all",
    "select a.step, a.grad_norm - b.grad_norm from steps a join steps b using (step) where a.run < b.run order by 1",
    "with hot as (from layers where trust_ratio > 0.35) select run, min(step) from hot group by run order by run",
    "select run, (select max(step) from layers l where l.run = e.run) from epochs e order by run",
    "select step from steps union all select epoch from epochs order by 1",
    "select parameter, trust_ratio > 0.2, row_number() over (partition by run order by step, parameter) from layers "
    "order by run, step, parameter",
    "select run, time, extract(epoch from time) from steps order by run, time",
    "select upper(rule), text from findings order by run",
    "select count(*), max(value) from curvature",
]


NO_PANDAS = ["pandas"] if duckdb.__version__ >= "2" else []  # earlier versions import it to scan Arrow's tables


def by_duckdb_alone(sql: str, runs: Path) -> pd.DataFrame:
    """The answer of DuckDB, which reads the files itself."""
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for table in ("layers", "steps", "epochs", "findings"):
            connection.execute(f"create view {table} as from read_parquet('{runs}/*/trace/{table}/*.parquet')")
        connection.execute("create table curvature (value double)")
        return connection.sql(sql).to_arrow_table().to_pandas()


@pytest.mark.parametrize("sql", QUERIES)
def test_an_answer_is_duckdbs_own(sql: str, runs: Path) -> None:
    ours, theirs = tvlars_probe.query(sql, runs), by_duckdb_alone(sql, runs)
    assert [str(name) for name in ours.columns] == [str(name) for name in theirs.columns]
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_column_type=False)


def test_an_answer_is_that_of_pandas(runs: Path) -> None:
    rows = tvlars_probe.open_runs(runs).layers()
    expected = rows.groupby(rows["parameter"].astype(str))["trust_ratio"].mean().astype(float)
    there = tvlars_probe.query("select parameter, avg(trust_ratio) as mean from layers group by parameter", runs)
    pd.testing.assert_series_equal(
        there.set_index("parameter")["mean"].sort_index(),
        expected.sort_index(),
        check_names=False,
        check_index_type=False,
    )


def test_traces_join_with_runs_by_run(runs: Path) -> None:
    sql = "select name, optimizer, max(test_acc1) as best from epochs join runs using (run) group by all order by name"
    assert tvlars_probe.query(sql, [runs / "lars", str(runs / "la*")]).to_dict("list") == {
        "name": ["lamb", "lars"],
        "optimizer": ["LAMB", "LARS"],
        "best": [42.0, 41.0],
    }


def test_only_the_tables_that_are_named_are_read(runs: Path) -> None:
    [part] = list_parts(runs / "lars" / "trace" / "layers")
    part.path.write_bytes(part.path.read_bytes()[:100])
    assert len(tvlars_probe.query("from steps", runs)) == 12
    with pytest.raises(TraceError, match=f"{part.path.name} is damaged.*--repair"):
        tvlars_probe.query("select count(*) from layers", runs)


def test_only_the_columns_that_are_named_are_read(runs: Path) -> None:
    """An older trace lacks one: elsewhere, too, whoever asks for it is told, and whoever asks for all gets nulls."""
    [part] = list_parts(runs / "lars" / "trace" / "layers")
    pq.write_table(pq.read_table(part.path).drop_columns(["phi"]), part.path)
    assert len(tvlars_probe.query("select lr from layers", runs)) == 30
    assert tvlars_probe.query("from layers", runs)["phi"].isna().all()
    with pytest.raises(TraceError, match="has no column phi in layers: an older version recorded it"):
        tvlars_probe.query("select phi from layers", runs)


def test_names_that_are_no_utf8_are_damage(runs: Path) -> None:
    """DuckDB itself would fail for good at the first of them."""
    [part] = list_parts(runs / "lars" / "trace" / "layers")
    rows = pq.read_table(part.path)
    bad = pa.array([b"\xff\xfe"] * len(rows), pa.binary())
    names = pa.Array.from_buffers(pa.string(), len(rows), bad.buffers()).dictionary_encode()
    pq.write_table(rows.set_column(2, rows.schema.field(2), pa.chunked_array([names])), part.path)
    with pytest.raises(TraceError, match="damaged"):
        tvlars_probe.query("select upper(parameter) from layers", runs)


def test_a_run_that_still_trains_is_read_as_it_stands(tmp_path: Path) -> None:
    run = begin(tmp_path / "open")
    steps(run, 0, 4)
    run.flush(4)
    sql = "select status, count(*) as n from steps join runs using (run) group by all"
    assert tvlars_probe.query(sql, tmp_path).to_dict("list") == {"status": ["running"], "n": [4]}
    steps(run, 4, 6)
    layers(run, 5, ["a"])
    run.flush(6)
    assert tvlars_probe.query(sql, tmp_path)["n"].tolist() == [6]
    run.finish("interrupted")
    assert tvlars_probe.query(sql, tmp_path).to_dict("list") == {"status": ["interrupted"], "n": [6]}


def test_copies_of_a_run_are_refused(runs: Path) -> None:
    shutil.copytree(runs / "lars", runs / "copy")
    with pytest.raises(UserError, match=r"copies of one run, and would count twice: leave one out"):
        tvlars_probe.query("select 1 from runs", runs)


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="there is no run at"):
        tvlars_probe.query("select 1 from runs", tmp_path)


def test_numbers_are_plain_and_names_differ(runs: Path) -> None:
    [row] = tvlars_probe.query(
        "select sum(step) as s, sum(step::hugeint * 9223372036854775807) as big, 0.25 as d, "
        "max(time) - min(time) as t, 1 as a, 2 as a, 3 as a_1, null as n, interval 1 month as m from steps",
        runs,
    ).to_dict("records")
    assert (row["s"], row["d"], row["a"], row["a_1"], row["a_1_1"]) == (30, 0.25, 1, 2, 3)
    assert isinstance(row["s"], int)
    assert row["big"] == pytest.approx(30 * 2.0**63)
    assert row["t"] == pd.Timedelta(seconds=2.5)


def test_inf_and_nan_are_kept(tmp_path: Path) -> None:
    run = begin(tmp_path / "r")
    layers(run, 0, ["a", "b", "c"], grad_norm=[float("inf"), float("nan"), None])
    run.flush(1)
    sql = "select grad_norm, isfinite(grad_norm) as whole from layers order by parameter"
    found = ask(sql, tmp_path).rows
    assert str(found["grad_norm"].to_pylist()) == "[inf, nan, None]"
    assert found["whole"].to_pylist() == [False, False, None]
    run.finish("completed")


def test_rows_beyond_those_wanted_are_counted(runs: Path) -> None:
    answer = ask("select step from layers order by step", runs, most_rows=7)
    assert answer.rows["step"].to_pylist() == [0, 0, 0, 0, 0, 1, 1]
    assert answer.total == 30


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        (
            "select trust from layers",
            r'^Referenced column "trust" not found in FROM clause! \(columns of layers: run, step, parameter, weight',
        ),
        ("select 1 from layer", r"^Table with name layer does not exist! \(tables: layers, steps, epochs, .*, runs\)$"),
        ("selec 1", r'^syntax error at or near "selec" \(tables: layers, steps'),
        ("select parameter::int from layers", r"^Could not convert string '(stem|body|head)' to INT32[^(]*$"),
        ("select l.x, s.lr from layers l join steps s using (step)", r"columns of layers: .*; columns of steps: run"),
        ("select * from read_csv('x.csv')", r"reads the tables of the runs, and no file"),
        ("select * from read_parquet('*')", r"reads the tables of the runs, and no file"),
        ("select * from read_text('/etc/hostname')", r"reads the tables of the runs, and no file"),
        ("select * from glob('*')", r"reads the tables of the runs, and no file"),
        ("select * from 'run.json'", r"reads the tables of the runs, and no file"),
        ("from 'x.parquet'", r"reads the tables of the runs, and no file"),
        (
            "select date '290000-01-01'",
            r"^a frame of pandas can't hold a column of the answer: .*cast it to another type",
        ),
        (
            "select union_value(a := 1)",
            r"^a frame of pandas can't hold a column of the answer: .*cast it to another type",
        ),
        ("select * from secret", r"Table with name secret does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(sql: str, told: str, runs: Path) -> None:
    secret = pd.DataFrame({"a": [1]})  # DuckDB's own default is to see a caller's variables
    with pytest.raises(UserError, match=told) as caught:
        tvlars_probe.query(sql, runs)
    assert "\n" not in str(caught.value)
    assert len(secret) == 1


def test_what_memory_cant_hold_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(limits, "memory", lambda: 1 << 12)
        with pytest.raises(UserError, match="a quarter of this machine's memory: ask for fewer rows"):
            tvlars_probe.query("select * from range(10000)", runs)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "memory", lambda: 100)
        with pytest.raises(TraceError, match="has 18 rows, of which this machine's memory holds"):
            tvlars_probe.query("select weight_norm, lr from layers", runs)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "memory", lambda: 6 * 8 * 4)  # the six rows of one run, but not those of both
        with pytest.raises(TraceError, match="over half of this machine's memory: name fewer runs or columns"):
            tvlars_probe.query("select grad_norm from steps", runs)


class AlarmError(Exception):
    pass


def test_a_query_ends_when_it_is_interrupted(runs: Path) -> None:
    """As by Ctrl-C. Unless it is, this one takes hours."""

    def ring(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(AlarmError):
            tvlars_probe.query("select sum(a.range * b.range % 7) from range(100000000) a, range(1000000) b", runs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("tvlars_probe.query('select count(*) from layers', sys.argv[1])", ["torch"]),
        ("main(['query', 'select run, max(lr) from layers group by run', sys.argv[1]])", ["torch", *NO_PANDAS]),
        ("main(['query', 'select name, status from runs', sys.argv[1]])", ["torch", *NO_PANDAS]),
    ],
    ids=["python", "layers", "runs"],
)
def test_an_answer_needs_neither_torch_nor_for_a_reader_pandas(call: str, absent: list[str], runs: Path) -> None:
    code = (
        "import sys, tvlars_probe\nfrom tvlars_probe.cli import main\n"
        f"try:\n    {call}\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('THERE', [m for m in {absent!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "THERE []"


def test_many_runs_with_names_of_their_own_stay_apart(tmp_path: Path) -> None:
    """Each part has a dictionary of its own: indices of one must not be read by another."""
    rng, expected = np.random.default_rng(0), dict[tuple[str, str], float]()
    for index in range(8):
        names = [f"t{number}" for number in rng.permutation(20)[: 5 + index]]
        run = begin(tmp_path / f"r{index}")
        values: Any = rng.random(len(names)).astype(np.float32)
        layers(run, 0, names, trust_ratio=values)
        expected |= {(f"r{index}.id", name): value for name, value in zip(names, values, strict=True)}
        run.flush(1)
        run.finish("completed")
    found = tvlars_probe.query("select run, parameter, trust_ratio from layers", tmp_path)
    assert {(run, name): value for run, name, value in found.itertuples(index=False)} == expected
