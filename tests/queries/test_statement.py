"""What a query reads, told from its text."""

from __future__ import annotations

import duckdb
import pytest

from tvlars_probe.errors import UserError
from tvlars_probe.queries.statement import reads_of
from tvlars_probe.traces.schema import LAYERS, STEPS

KNOWN = {"layers": LAYERS.names, "steps": STEPS.names}


def read(sql: str) -> dict[str, set[str]]:
    """By table, the columns that the query may need."""
    with duckdb.connect() as connection:
        reads = reads_of(connection, sql)
    return {table: {*reads.columns(table, KNOWN.get(table, ()))} for table in reads.tables}


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("select count(*) from layers", {"layers": set()}),
        ("select run, max(trust_ratio) from layers group by run", {"layers": {"run", "trust_ratio"}}),
        ("SELECT Step FROM Main.LAYERS", {"layers": {"step"}}),
        ('select l."lr" * 2 from layers as l where l.step < 5', {"layers": {"lr", "step"}}),
        ("select * from (select step, phi from layers)", {"layers": {"step", "phi"}}),
        ("with a as (select lr from layers) select * from a", {"layers": {"lr"}, "a": set()}),
        ("select 1 from layers join steps using (step)", {"layers": {"step"}, "steps": {"step"}}),
        ("select max(l.step) from layers l order by 1", {"layers": {"step"}}),
        ("describe layers", {}),
        ("show tables", {}),
        ("select 1", {}),
    ],
)
def test_only_the_columns_that_are_named_are_read(sql: str, columns: dict[str, set[str]]) -> None:
    assert read(sql) == columns


@pytest.mark.parametrize(
    "sql",
    [
        "from layers",
        "table layers",
        "summarize layers",
        "select * exclude (step) from layers",
        "select l from layers l",
        "select count(layers) from layers",
        "select #2 from layers",
        "select columns('.*_norm') from layers",
        "select step from layers natural join steps",
        "select (select max(l2.x) from (select l.* from steps) as l2) from layers l",
        "select step from layers pivot (max(lr) for parameter in ('a'))",
        "with a as (from layers) select step from a",
    ],
)
def test_where_columns_may_be_taken_without_their_names_all_are_read(sql: str) -> None:
    assert read(sql)["layers"] == {*LAYERS.names}


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("", "0 statements were given"),
        ("-- nothing", "0 statements were given"),
        ("select 1; select 2", "2 statements were given"),
        ("copy layers to 'x.csv'", "kind COPY is refused, and nothing was done"),
        ("explain analyze select 1", "kind EXPLAIN is refused"),
        ("with a as (insert into layers values (1) returning *) select * from a", "INSERT|A CTE needs a SELECT"),
        ("select * from query('select 1')", "the function query is refused: name the table after FROM"),
        ("select * from Query_Table(['layers'])", "the function query_table is refused"),
    ],
)
def test_what_isnt_one_select_is_refused(sql: str, told: str) -> None:
    with pytest.raises((UserError, duckdb.NotImplementedException), match=told):
        read(sql)


def test_a_long_sum_is_answered_or_refused() -> None:
    assert read("select " + "+".join(["step"] * 100) + " from steps") == {"steps": {"step"}}
    with pytest.raises((UserError, duckdb.Error), match=r"nests too deep|expression depth"):
        read("select " + "+".join(["step"] * 100_000) + " from steps")
