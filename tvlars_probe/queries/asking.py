"""`tvlars_probe.query`: one SELECT over the tables of runs.

DuckDB reads no file: the tables that a query names are read by `tvlars_probe.traces.reader`, the columns that it names
alone, and are checked there. DuckDB itself would crash on a damaged part's names.
"""

from __future__ import annotations

import collections
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from tvlars_probe.admission import limits
from tvlars_probe.errors import TraceError, UserError
from tvlars_probe.queries.runs_table import RUNS, row_of
from tvlars_probe.queries.statement import Reads, reads_of
from tvlars_probe.runs import open_runs
from tvlars_probe.traces.datasets import no_rows
from tvlars_probe.traces.manifest import in_json
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import duckdb
    import pandas as pd
    import pyarrow as pa

    from tvlars_probe.runs import Runs
    from tvlars_probe.traces.reader import StrPath

_SETTINGS: dict[str, Any] = {
    "enable_external_access": "false",  # no file, no network
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",  # no variable of a caller's
    "temp_directory": "",  # what memory can't hold isn't written down
}

_SQL_TYPES = {"name": "VARCHAR", "time": "TIMESTAMPTZ", "float64": "DOUBLE", "int64": "BIGINT"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave.

    Attributes:
        rows: its rows, or the first of them.
        total: the number of all its rows.
    """

    rows: pa.Table
    total: int


def query(sql: str, runs: StrPath | Iterable[StrPath]) -> pd.DataFrame:
    """Answer one SELECT over the tables of runs, by DuckDB.

    The tables are those of docs/reference/tables.md, each with the rows of all runs, and ``runs`` with a row per run.
    They are joined by their column ``run``. A run that still trains is read as it stands.

    Args:
        sql: the query, such as ``select run, max(trust_ratio) from layers group by run``.
        runs: run directories, folders of runs, or glob patterns.

    Raises:
        UserError: the query isn't one SELECT, is wrong, would read a file, or memory can't hold its answer.
        RunDirectoryError: a path holds no run, or two are copies of one run.
        TraceError: a part of a table is damaged.

    Example:
        >>> tvlars_probe.query("select name, best_test_acc1 from runs order by 2 desc", "runs")  # doctest: +SKIP
    """
    rows = ask(sql, runs).rows
    with held_by("a frame of pandas"):
        return rows.to_pandas()


@contextlib.contextmanager
def held_by(form: str) -> Iterator[None]:
    """Tell of values that DuckDB knows and another form doesn't, such as dates after the year 9999.

    Raises:
        UserError: the form can't hold a column.
    """
    import pyarrow as pa

    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise UserError(f"{form} can't hold a column of the answer: {error} (cast it to another type)") from None


def ask(sql: str, runs: StrPath | Iterable[StrPath], *, most_rows: int | None = None) -> Answer:
    """`query` with its answer as Arrow has it. Neither pandas nor torch is loaded.

    Args:
        sql: the query.
        runs: run directories, folders of runs, or glob patterns.
        most_rows: the rows wanted at most; the others are counted. None is all.
    """
    import duckdb

    connection = duckdb.connect(config=_SETTINGS)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        reads = None
        try:
            _register_empty(connection)
            reads = reads_of(connection, sql)
            connection.sql(sql)  # what is wrong with it is told before anything is read
            _fill(connection, reads, open_runs(runs))
            return _interruptibly(connection, lambda: _answer(connection.sql(sql), most_rows))
        except duckdb.Error as error:
            _explain(error, reads)
    finally:
        connection.close()


def _register_empty(connection: duckdb.DuckDBPyConnection) -> None:
    """Make all tables known, without rows."""
    columns = ", ".join(f"{column.name} {_SQL_TYPES[column.type]}" for column in RUNS.columns)
    connection.execute(f"CREATE TABLE {RUNS.name} ({columns})")
    for name in TABLES:
        connection.register(name, no_rows(name, None))


def _fill(connection: duckdb.DuckDBPyConnection, reads: Reads, runs: Runs) -> None:
    """Give the tables that are read their rows."""
    _refuse_copies(runs)
    if RUNS.name in reads.tables:
        # As one text: row by row it takes twenty times as long.
        form = json.dumps([{column.name: _SQL_TYPES[column.type] for column in RUNS.columns}])
        rows = json.dumps(in_json([row_of(run) for run in runs]))
        connection.execute(f"INSERT INTO {RUNS.name} SELECT unnest(from_json(?, '{form}'), max_depth := 2)", [rows])
    for table in reads.tables & TABLES.keys():
        # A query may name no column, as count(*) does: a required one tells how many rows there are.
        columns = reads.columns(table, TABLES[table].names) or ["step"]
        connection.register(table, _rows(runs, table, columns))


def _refuse_copies(runs: Runs) -> None:
    """Refuse runs with one run_id: what is joined by it would count twice."""
    counts = collections.Counter(run.manifest.run_id for run in runs)
    if copies := [str(run.path) for run in runs if counts[run.manifest.run_id] > 1]:
        raise UserError(f"{copies[0]} and {copies[1]} are copies of one run, and would count twice: leave one out")


def _rows(runs: Runs, table: str, columns: list[str]) -> pa.Table:
    """The rows of all runs.

    Raises:
        TraceError: memory can't hold them together.
    """
    import pyarrow as pa

    found, size = [], 0
    for run in runs:
        found.append(run.whole_rows(table, columns))
        size += found[-1].nbytes
        if size > limits.memory() // 2:
            raise TraceError(f"the rows of {table} take over half of this machine's memory: name fewer runs or columns")
    return pa.concat_tables(found).unify_dictionaries()


def _interruptibly(connection: duckdb.DuckDBPyConnection, answer: Callable[[], Answer]) -> Answer:
    """What ``answer`` returns. DuckDB computes in a thread: in this one it would be deaf to Ctrl-C."""
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        try:
            return answering.result()
        except BaseException:  # KeyboardInterrupt is no Exception
            connection.interrupt()
            raise


def _answer(relation: duckdb.DuckDBPyRelation, most_rows: int | None) -> Answer:
    import pyarrow as pa

    kept, count, total, size = list[Any](), 0, 0, 0
    with pa.RecordBatchReader.from_stream(relation) as batches:
        for batch in batches:
            total += len(batch)
            if most_rows is None or count < most_rows:
                kept.append(batch.slice(0, None if most_rows is None else most_rows - count))
                count, size = count + len(kept[-1]), size + kept[-1].nbytes
            if size > limits.memory() // 4:
                raise UserError("the answer takes over a quarter of this machine's memory: ask for fewer rows")
        rows = pa.Table.from_batches(kept, batches.schema)
    return Answer(_plain(rows.rename_columns([*_distinct(rows.column_names)])), total)


def _distinct(names: Iterable[str]) -> Iterator[str]:
    """The names, each once: a and a become a and a_1."""
    seen: set[str] = set()
    for name in names:
        number, one = 0, name
        while one in seen:
            number += 1
            one = f"{name}_{number}"
        seen.add(one)
        yield one


def _plain(rows: pa.Table) -> pa.Table:
    """The rows with the columns that Python and pandas have no number for as integers, floats and durations.

    Sums of integers are decimal numbers to DuckDB, and differences of times are intervals.
    """
    import pyarrow as pa

    for index, column in enumerate(rows.schema):
        if pa.types.is_decimal(column.type):
            rows = rows.set_column(index, column.name, _numbers(rows.column(index), column.type.scale))
        elif pa.types.is_interval(column.type):
            rows = rows.set_column(index, column.name, _durations(rows.column(index)))
    return rows


def _numbers(values: pa.ChunkedArray[Any], digits: int) -> pa.ChunkedArray[Any]:
    """Decimal numbers as integers, or as floats where they have digits after the point or exceed 64 bits."""
    import pyarrow as pa

    try:
        return values.cast(pa.float64() if digits else pa.int64())
    except pa.ArrowInvalid:
        return values.cast(pa.float64())


def _durations(intervals: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """Intervals as durations; as they are where one has months, which have no length."""
    import pyarrow as pa

    values = [None if one is None else (*one,) for one in intervals.to_pylist()]
    if any(one is not None and one[0] for one in values):
        return intervals
    lengths = [None if one is None else timedelta(days=one[1], microseconds=one[2] // 1000) for one in values]
    return pa.chunked_array([pa.array(lengths, pa.duration("us"))])


def _explain(error: duckdb.Error, reads: Reads | None) -> NoReturn:
    """Raise DuckDB's error as one of ours: its first line, and the names that are known.

    Raises:
        UserError: always.
    """
    import duckdb

    kind, _, told = str(error).partition("\n")[0].partition(" Error: ")
    reason = told or kind
    if isinstance(error, duckdb.PermissionException):
        raise UserError(f"a query reads the tables of the runs, and no file: {reason}") from None
    if isinstance(error, duckdb.OutOfMemoryException):
        raise UserError(f"memory can't hold the query ({reason}): name fewer runs, columns or rows") from None
    raise UserError(f"{reason}{_hint(error, reads)}") from None


def _hint(error: duckdb.Error, reads: Reads | None) -> str:
    """The names that are known, where one that isn't may have been given."""
    import duckdb

    known = {**TABLES, RUNS.name: RUNS}
    if isinstance(error, duckdb.BinderException) and reads is not None and (named := reads.tables & known.keys()):
        columns = [f"columns of {name}: {', '.join(known[name].names)}" for name in sorted(named)]
        return f" ({'; '.join(columns)})"
    if isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException):
        return f" (tables: {', '.join(known)})"
    return ""
