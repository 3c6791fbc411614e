"""What the commands that analyse runs share: their arguments, and answers as text, JSON or CSV."""

from __future__ import annotations

import functools
import io
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.admission.names import encodable
from tvlars_probe.commands.options import FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pandas as pd
    from rich.console import Console, RenderableType

    from tvlars_probe.analyses.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Output:
    """How an answer is to be written.

    Attributes:
        as_json: whether everything is written, as JSON.
        as_csv: whether the main table is written, as CSV.
        out: the file to write; None is the terminal.

    Raises:
        UserError: both forms are asked for.
    """

    as_json: bool
    as_csv: bool
    out: Path | None

    def __post_init__(self) -> None:
        if self.as_json and self.as_csv:
            raise UserError("--json and --csv are two forms of one answer: give one of them")

    @property
    def form(self) -> str:
        """The form: "json", "csv" or "text", as asked for, else by the file's suffix."""
        suffix = "" if self.out is None else self.out.suffix.lower()
        if self.as_json or (suffix == ".json" and not self.as_csv):
            return "json"
        return "csv" if self.as_csv or suffix == ".csv" else "text"


PIPED = 160
"""Width in characters of what goes to a file or another program."""


def analysis_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument RUN... and `output_options`."""
    return click.argument("runs", nargs=-1, required=True, type=RunPath())(output_options(function))


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of its output, which reach it as one `Output`, ``output``."""

    # `wraps` copies the docstring, which is the command's help, and the options that were declared below this one.
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, as_csv: bool, out: Path | None, **kwargs: Any) -> None:
        if out is not None:
            from tvlars_probe.traces.outputs import check_output

            check_output(out)  # first: what follows may take long, and store rows with the run
        function(*args, output=Output(as_json, as_csv, out), **kwargs)

    # The decorator that is applied last stands first in the help.
    for add in (
        option("--out", "-o", section="Output", type=FilePath(), help="Write there instead."),
        option("--csv", "as_csv", section="Output", is_flag=True, help="The main table as CSV."),
        option("--json", "as_json", section="Output", is_flag=True, help="Everything, for machines."),
    ):
        command = add(command)
    return command


def emit(
    output: Output,
    results: Any,
    main_table: pd.DataFrame | Callable[[], pd.DataFrame],
    render: Callable[[Console], None],
    *,
    piped: int = PIPED,
) -> None:
    """Write an answer in the form asked for, to the terminal or to a file.

    Args:
        output: its form and place.
        results: everything, for JSON: a dataclass, or whatever `tvlars_probe.analyses.verdict.plain` takes.
        main_table: the table for CSV, or what makes it: a large one is made only where it is wanted.
        render: prints the answer for a reader.
        piped: width of that in characters where it goes to a file or another program.

    Raises:
        UserError: the file can't be written.
    """
    if output.form == "json":
        from tvlars_probe.analyses.verdict import plain

        text = json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    elif output.form == "csv":
        text = (main_table() if callable(main_table) else main_table).to_csv(index=False)
    else:
        text = _rendered(render, piped, to_terminal=output.out is None)
    if output.out is None:
        click.echo(encodable(text), nl=False)
    else:
        from tvlars_probe.traces.outputs import write_output

        write_output(output.out, encodable(text).encode())
        say(f"Written: {output.out}")


def _rendered(render: Callable[[Console], None], piped: int = PIPED, *, to_terminal: bool) -> str:
    """The text that ``render`` prints; with colours only where it goes to a terminal."""
    from tvlars_probe.commands.terminal import Terminal

    # rich takes a StringIO for no terminal, and has to be told.
    stream = io.StringIO()
    is_seen = sys.stdout is not None and sys.stdout.isatty()  # None where a shell has closed it
    console = Terminal(piped=piped, file=stream, force_terminal=to_terminal and is_seen)
    render(console)
    return stream.getvalue()


def print_verdict(console: Console, verdict: Verdict, *, title: str) -> None:
    """Print a verdict: title, question and answer; the reason; how often such an answer was right, if it is known."""
    from rich.text import Text

    console.print(Text.assemble((title, "bold"), f"  {verdict.question} ", (verdict.answer, "bold")), soft_wrap=True)
    console.print(verdict.reason[:1].upper() + verdict.reason[1:], soft_wrap=True)
    if verdict.reliability is not None:
        console.print(f"Such an answer was {verdict.reliability.text}", soft_wrap=True)


def table_of(
    frame: pd.DataFrame, columns: Mapping[str, str] | None = None, *, title: str | None = None
) -> RenderableType:
    """A frame as a table, which fits the console.

    Args:
        frame: the rows.
        columns: headings by column; only these columns are shown, in this order. By default all, by their names.
        title: what stands above the table.
    """
    from tvlars_probe.commands.terminal import FittedTable, TextColumn

    headings = columns or {str(name): str(name) for name in frame.columns}
    rows = frame.to_dict("records")
    return FittedTable(
        [
            TextColumn(
                heading,
                [text_of(row.get(name), share=name.endswith("_share")) for row in rows],
                is_number=name in frame and frame[name].dtype.kind in "ifub",
            )
            for name, heading in headings.items()
        ],
        title=title,
        elsewhere="--json",
    )


def text_of(value: Any, *, share: bool = False) -> str:
    """The text of a cell: numbers have four digits, shares are in percent, null is empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if share:
        return f"{100 * value:.3g} %"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
