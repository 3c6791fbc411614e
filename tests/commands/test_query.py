"""`tvlars-probe query`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from rich.console import Console

import tvlars_probe
from tests.queries.made_runs import make_runs
from tvlars_probe.commands.query import MOST_IN_FILE, MOST_ROWS, render
from tvlars_probe.queries.asking import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Outcome

    Cli = Callable[..., Outcome]

BY_RUN = "select run, count(*) as n, max(trust_ratio) as top from layers group by run order by run"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs")


def snapshot(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_runs_below_runs_are_asked_by_default(runs: Path, cli: Cli) -> None:
    done = cli("query", BY_RUN)
    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines()] == [
        ["run", "n", "top"],
        ["lamb.id", "18", "1.5"],
        ["lars.id", "12", "0.5"],
    ]
    assert cli("query", BY_RUN, "runs").out == done.out
    assert cli("query", BY_RUN, "runs/l*s").out.splitlines()[1:] == [done.out.splitlines()[2]]
    shutil.rmtree(runs)
    assert (cli("query", BY_RUN).code, cli("query", BY_RUN).err) == (2, "Error: there is no run at runs\n")


def test_csv_json_and_parquet_have_all_rows(runs: Path, cli: Cli, tmp_path: Path) -> None:
    sql = "select step, parameter, trust_ratio from layers order by all"
    expected = tvlars_probe.query(sql, runs)
    rows = list(csv.DictReader(io.StringIO(cli("query", sql, "--csv").out)))
    assert [(int(row["step"]), row["parameter"]) for row in rows] == list(
        zip(expected["step"], expected["parameter"], strict=True)
    )
    assert [row["trust_ratio"] == "" for row in rows] == expected["trust_ratio"].isna().tolist()
    told = json.loads(cli("query", sql, "--json").out)
    assert [row["step"] for row in told] == expected["step"].tolist()
    assert [row["trust_ratio"] is None for row in told] == expected["trust_ratio"].isna().tolist()
    assert cli("query", sql, "--parquet", "a.parquet").out == "Written: a.parquet\n"
    assert cli("query", sql, "-o", "b.parquet").out == "Written: b.parquet\n"
    for name in "ab":
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), expected)
    assert cli("query", sql, "-o", "c.json").code == 0
    assert json.loads((tmp_path / "c.json").read_text()) == told


def test_json_has_no_nan_and_integers_stay_so_beside_nulls(runs: Path, cli: Cli) -> None:
    sql = "select step, if(step > 3, step, null) as late, loss, [loss] as list, 0.5 as d from steps order by all"
    done = cli("query", sql, "runs/lars", "--json")

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    rows = json.loads(done.out, parse_constant=refuse)
    assert [row["late"] for row in rows] == [None] * 4 + [4, 5]
    assert rows[5] == {"step": 5, "late": 5, "loss": None, "list": [None], "d": 0.5}
    assert '"late": 4,' in done.out
    table = cli("query", sql, "runs/lars", "--csv").out.splitlines()
    assert table[5].split(",")[:2] == ["4", "4"]


def test_nan_is_printed_and_null_is_empty(runs: Path, cli: Cli) -> None:
    out = cli("query", "select step, loss, phi from steps where step > 3 order by step", "runs/lars").out
    assert [line.split() for line in out.splitlines()] == [["step", "loss", "phi"], ["4", "0.2"], ["5", "nan"]]


def test_what_isnt_printed_is_counted(runs: Path, cli: Cli) -> None:
    out = cli("query", f"select * from range({MOST_ROWS + 1234})").out.splitlines()
    assert len(out) == MOST_ROWS + 2
    assert out[-1] == "… and 1,234 more: --csv prints all"
    assert len(cli("query", f"select * from range({MOST_ROWS})").out.splitlines()) == MOST_ROWS + 1
    assert cli("query", "select * from curvature").out == "No rows\n"


def test_what_all_rows_share_is_said_of_those_shown_and_a_file_has_all(runs: Path, cli: Cli, tmp_path: Path) -> None:
    wide = ", ".join(f"repeat('x', 30) as long{index}" for index in range(4))
    sql = f"select i, i > {MOST_ROWS + 5} as late, {wide} from range({MOST_ROWS + 10}) as t(i)"
    console = Console(width=80, file=io.StringIO())
    render(console, ask(sql, runs, most_rows=MOST_ROWS))
    assert console.file.getvalue().startswith("In all rows shown: late ")  # type: ignore[attr-defined]
    assert cli("query", sql, "-o", "all.txt").code == 0
    lines = (tmp_path / "all.txt").read_text().splitlines()
    assert len(lines) == MOST_ROWS + 11
    assert lines[-1].split() == [str(MOST_ROWS + 9), "yes", *["x" * 30] * 4]
    done = cli("query", f"select * from range({MOST_IN_FILE + 1})", "-o", "more.txt")
    assert (done.code, (tmp_path / "more.txt").exists()) == (2, False)
    assert "name the file .csv, .json or .parquet" in done.err


def test_the_tables_and_their_columns_can_be_found(runs: Path, cli: Cli) -> None:
    assert cli("query", "show tables").out.split() == [
        "name", "curvature", "epochs", "findings", "landscape", "layers", "noise", "runs", "spectrum", "steps",
    ]  # fmt: skip
    for table in ("layers", "runs"):
        rows = json.loads(cli("query", f"describe {table}", "--json").out)
        assert {"run"} < {row["column_name"] for row in rows}


@pytest.mark.parametrize(
    "sql",
    [
        "copy layers to 'x.csv'",
        "copy (select 1) to 'x.parquet' (format parquet)",
        "copy runs from 'x.csv'",
        "attach 'x.db'",
        "detach memory",
        "install httpfs",
        "load httpfs",
        "pragma database_size",
        "set enable_external_access = true",
        "reset threads",
        "use memory",
        "create table x (i int)",
        "create view x as select 1",
        "insert into runs values (1)",
        "update runs set name = 'x'",
        "delete from runs",
        "drop table runs",
        "export database 'x'",
        "import database 'x'",
        "call enable_logging()",
        "vacuum",
        "begin",
        "prepare x as select 1",
        "explain analyze select 1",
        "with x as (delete from runs returning *) select * from x",
        "select * from enable_logging(storage := 'file', storage_path := 'x')",
        "select * from read_csv('runs/lars/run.json')",
        "select * from read_json('runs/lars/run.json')",
        "select * from read_parquet('runs/lars/trace/layers/*')",
        "select * from parquet_metadata('runs/lars/trace/layers/*')",
        "select * from read_text('runs/lars/run.json')",
        "select * from read_blob('runs/lars/run.json')",
        "select * from sniff_csv('runs/lars/run.json')",
        "select * from glob('*')",
        "select * from 'runs/lars/run.json'",
        "select * from 'https://example.org/x.parquet'",
        "select getenv('HOME')",
        "select 1; copy layers to 'x.csv'",
    ],
)
def test_nothing_is_read_or_written_beside_the_tables(sql: str, runs: Path, cli: Cli, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for form in ([], ["-o", "out.csv"]):
        done = cli("query", sql, *form)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert "Traceback" not in done.err
    assert snapshot(tmp_path) == before


def test_what_is_wrong_is_said_in_one_line_with_what_is_known(runs: Path, cli: Cli) -> None:
    done = cli("query", "select trustratio from layers")
    assert done.code == 2
    assert done.err.startswith(
        'Error: Referenced column "trustratio" not found in FROM clause! (columns of layers: run,'
    )
    assert "trust_ratio" in done.err
    assert "(tables: layers, steps," in cli("query", "select 1 from nothing").err
    assert cli("query", "select from where").err.startswith("Error: ")
    assert cli("query", "select 1", "nowhere").err == "Error: there is no run at nowhere\n"
    assert "Missing argument 'SQL'" in cli("query").err


def test_forms_that_exclude_each_other_are_refused(runs: Path, cli: Cli) -> None:
    for words, told in {
        ("--json", "--csv"): "two forms of one answer",
        ("--parquet", "x.parquet", "--csv"): "a form of its own and names its file: leave out --json, --csv and -o",
        ("--parquet", "x.parquet", "-o", "y.csv"): "a form of its own",
        ("--parquet", "runs/lars/x.parquet"): "lies in the run directory",
        ("--parquet", "nowhere/x.parquet"): "there is no folder nowhere",
        ("-o", "runs/lars/x.parquet"): "lies in the run directory",
    }.items():
        done = cli("query", "select 1 as a", *words)
        assert done.code == 2
        assert told in done.err
    done = cli("query", "select interval 1 month as m", "--parquet", "x.parquet")
    assert (done.code, "parquet can't hold a column of the answer" in done.err) == (2, True)


def test_texts_cant_steer_the_terminal(runs: Path, cli: Cli) -> None:
    assert cli("query", "select 'a' || chr(27) || '[2J' as x").out.splitlines()[1] == r"a\x1b[2J"
    assert "\x1b" not in cli("query", 'select "\x1b[2J" from runs').err
