"""``tvlars-probe runs``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.show import without_non_finite
from tvlars_probe.commands.text import say
from tvlars_probe.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

_COLUMNS = ("run", "status", "best test acc", "age", "optimizer", "peak lr", "batch", "schedule", "data", "model")
"""The table's columns; a terminal that is too narrow loses the last ones first."""

_NUMBERS = {"batch", "peak lr", "best test acc", "age"}
_SHORTEST_NAME = 24
"""Characters to which the names of runs are shortened before a column is left out."""


@click.command(cls=Command, name="runs")
@click.argument("folder", type=FilePath(), default=Path("runs"))
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
def command(folder: Path, as_json: bool) -> None:
    """List the runs below a folder (runs/ by default)."""
    if not folder.is_dir():
        raise RunDirectoryError(f"there is no folder {folder}: 'tvlars-probe train' makes runs under runs/")
    rows = list(list_runs(folder))
    if as_json:
        click.echo(json.dumps(without_non_finite(rows), indent=1))
    elif not rows:
        say(f"No runs below {folder}")
    else:
        render(rows)


def list_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """A row per run below ``folder``. A run whose manifest can't be read is listed as damaged, without settings."""
    from tvlars_probe.traces.manifest import Manifest
    from tvlars_probe.traces.run_directory import find_runs, status

    for path in find_runs(folder):
        try:
            m = Manifest.load(path)
        except RunDirectoryError as error:
            yield {"run": path.name, "path": str(path), "status": "damaged", "error": str(error)}
            continue
        # The configuration of a user's own loop may hold anything, or nothing, under these names.
        config = m.config
        yield {
            "run": path.name,
            "path": str(path),
            "status": status(path, m),
            "data": (m.data or {}).get("name"),
            "model": (m.model or {}).get("name"),
            "optimizer": m.groups[0].get("optimizer") if m.groups else None,
            "batch_size": m.batch_size,
            "lr": m.peak_lr if m.peak_lr is not None else (m.groups[0].get("lr") if m.groups else None),
            "schedule": config["schedule"].get("name") if isinstance(config.get("schedule"), dict) else None,
            "seed": m.seed,
            "best_test_acc1": m.best_test_acc1,
            "created": m.created,
        }


def render(rows: list[dict[str, Any]]) -> None:
    """Print the runs as a table. On a narrow terminal first names lose their middle, then the last columns go."""
    from rich.measure import Measurement

    from tvlars_probe.commands.terminal import Terminal

    # In a file, or for another program, a row is one line however long.
    console = Terminal(piped=10_000)
    # Measured without bounds: rich would squeeze a table into the width that it has.
    columns, unbounded = list(_COLUMNS), console.options.update(width=10_000)
    longest = max(len(row["run"]) for row in rows)

    def excess() -> int:
        """Characters by which the table, as it stands, is too wide."""
        return Measurement.get(console, unbounded, _table(rows, columns, longest)).maximum - console.width

    longest = max(min(longest, _SHORTEST_NAME), longest - max(excess(), 0))
    while len(columns) > 1 and excess() > 0:
        columns.pop()
    console.print(_table(rows, columns, longest))
    if len(columns) < len(_COLUMNS):
        left_out = ", ".join(_COLUMNS[len(columns) :])
        console.print(f"Too wide for {console.width} columns: {left_out} (a wider terminal or --json shows all)")


def _shortened(name: str, length: int) -> str:
    """A name in ``length`` characters: its beginning and its end, which tell runs apart, around an ellipsis."""
    tail = length // 2
    return name if len(name) <= length else f"{name[: length - tail - 1]}…{name[-tail:]}"


def _table(rows: list[dict[str, Any]], columns: list[str], longest: int) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=True)
    for row in rows:
        accuracy = row.get("best_test_acc1")
        shown = {
            **row,
            "run": _shortened(row["run"], longest),
            "batch": row.get("batch_size"),
            "peak lr": row.get("lr"),
            "best test acc": None if accuracy is None else f"{accuracy:.2f} %",
            "age": age(row.get("created", "")),
        }
        table.add_row(*(_text(shown.get(name)) for name in columns))
    return table


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def age(created: str) -> str:
    """How long ago a run was created, in the largest unit that fits; empty where that isn't known."""
    # TypeError: what is given is no string, or its time has no zone and can't be subtracted.
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except (TypeError, ValueError):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"
