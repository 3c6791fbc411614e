"""``tvlars-probe query``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.analysis import Output, emit, output_options, text_of
from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import one_line, say
from tvlars_probe.errors import UserError
from tvlars_probe.traces.outputs import check_output, write_output

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    from rich.console import Console

    from tvlars_probe.queries.asking import Answer

MOST_ROWS = 50
"""Most rows of the table that is printed."""

MOST_IN_FILE = 10_000
"""Most rows of a table of text in a file."""


@click.command(cls=Command, name="query")
@click.argument("sql")
@click.argument("runs", nargs=-1, type=RunPath())
@output_options
@option("--parquet", section="Output", type=FilePath(), help="Write all rows there, as parquet.")
def command(sql: str, runs: tuple[str, ...], output: Output, parquet: Path | None) -> None:
    """Ask the tables of runs in SQL: one SELECT, answered by DuckDB.

    RUNS are run directories, folders of them or patterns; runs/ by default. Tables: layers, steps, epochs, curvature,
    noise, findings, spectrum and landscape, each with a column run, and runs with a row per run. SHOW TABLES lists
    them, DESCRIBE layers the columns of one.

    \b
      tvlars-probe query "select run, max(lr) from layers group by run" runs/a
    """
    from tvlars_probe.queries.asking import ask, held_by

    parquet = _parquet_file(output, parquet)
    is_text = output.form == "text" and parquet is None
    most = (MOST_ROWS if output.out is None else MOST_IN_FILE) if is_text else None
    answer = ask(sql, runs or ("runs",), most_rows=most)
    if output.out is not None and most is not None and answer.total > most:
        raise UserError(
            f"the answer has {answer.total:,} rows, and a table of text at most {most:,}: name the file .csv, .json or "
            f".parquet"
        )
    if parquet is not None:
        write_output(parquet, _as_parquet(answer.rows))
        say(f"Written: {parquet}")
        return
    with held_by("CSV" if output.form == "csv" else "JSON" if output.form == "json" else "a table of text"):
        emit(
            output,
            answer.rows.to_pylist() if output.form == "json" else None,
            lambda: _frame(answer.rows),
            lambda console: render(console, answer),
            piped=10_000,  # a row is one line, however long
        )


def _parquet_file(output: Output, parquet: Path | None) -> Path | None:
    """The parquet file asked for, by ``--parquet`` or by the suffix of ``-o``.

    Raises:
        UserError: another form is asked for, too, or the file can't be written.
    """
    if parquet is None:
        named = output.out is not None and output.out.suffix.lower() == ".parquet"
        return output.out if named and not (output.as_json or output.as_csv) else None
    if output.as_json or output.as_csv or output.out is not None:
        raise UserError("--parquet is a form of its own and names its file: leave out --json, --csv and -o")
    check_output(parquet)
    return parquet


def _as_parquet(rows: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tvlars_probe.queries.asking import held_by

    sink = pa.BufferOutputStream()
    with held_by("parquet"):
        pq.write_table(rows, sink)
    return sink.getvalue().to_pybytes()


def _frame(rows: pa.Table) -> pd.DataFrame:
    # Integers stay integers beside nulls.
    return rows.to_pandas(integer_object_nulls=True)


def _cell(value: Any) -> str:
    # To `text_of` NaN is null, as in frames. Here they differ: a loss that is NaN was recorded.
    return "nan" if isinstance(value, float) and math.isnan(value) else one_line(text_of(value))


def render(console: Console, answer: Answer) -> None:
    """Print the rows as a table."""
    import pyarrow as pa

    from tvlars_probe.commands.terminal import FittedTable, TextColumn

    columns = [
        TextColumn(
            one_line(column.name),
            [_cell(value) for value in values.to_pylist()],
            is_number=pa.types.is_integer(column.type) or pa.types.is_floating(column.type),
        )
        for column, values in zip(answer.rows.schema, answer.rows.columns, strict=True)
    ]
    left = answer.total - len(answer.rows)
    of = "rows shown" if left else "rows"
    console.print(FittedTable(columns, elsewhere="--csv", of=of) if answer.total else "No rows")
    if left:
        console.print(f"… and {left:,} more: --csv prints all")
