"""``tvlars-probe runs``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.show import without_non_finite
from tvlars_probe.commands.text import say
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.run_directory import RUNS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = ("run", "status", "best test acc", "age", "optimizer", "peak lr", "batch", "schedule", "data", "model")
"""The table's columns; a terminal that is too narrow loses the last ones first."""

_NUMBERS = {"batch", "peak lr", "best test acc", "age"}


@click.command(cls=Command, name="runs")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=RunPath())
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
def command(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the runs below folders (runs/ by default); a run directory is listed itself."""
    folders = folders or (RUNS_FOLDER,)
    for folder in folders:
        if not folder.is_dir():
            raise RunDirectoryError(f"there is no folder {folder}: 'tvlars-probe train' makes runs under runs/")
    # Of folders within each other a run is listed once.
    found: dict[Path, dict[str, Any]] = {}
    for row in (row for folder in folders for row in list_runs(folder)):
        found.setdefault(Path(row["path"]).resolve(), row)
    rows = [*found.values()]
    if as_json:
        click.echo(json.dumps(without_non_finite(rows), indent=1))
    elif not rows:
        say(f"No runs below {', '.join(map(str, folders))}")
    else:
        render(rows)


def list_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """A row per run below ``folder``. A run whose manifest can't be read is listed as damaged, without settings."""
    from tvlars_probe.traces.manifest import Manifest
    from tvlars_probe.traces.run_directory import find_runs
    from tvlars_probe.traces.summary import summary

    for path in find_runs(folder):
        try:
            m = Manifest.load(path)
        except RunDirectoryError as error:
            yield {"run": path.name, "path": str(path), "status": "damaged", "error": str(error)}
            continue
        yield summary(path, m)


def render(rows: list[dict[str, Any]]) -> None:
    """Print the runs as a table. On a narrow terminal first names are shortened, then the last columns go."""
    from tvlars_probe.commands.terminal import FittedTable, Terminal, TextColumn

    shown = [
        {
            **row,
            "batch": row.get("batch_size"),
            "peak lr": row.get("lr"),
            "best test acc": None if row.get("best_test_acc1") is None else f"{row['best_test_acc1']:.2f} %",
            "age": age(row.get("created", "")),
        }
        for row in rows
    ]
    columns = [
        TextColumn(name, [_text(row.get(name)) for row in shown], is_number=name in _NUMBERS) for name in _COLUMNS
    ]
    # In a file, or for another program, a row is one line however long.
    Terminal(piped=10_000).print(FittedTable(columns))


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
