"""``tvlars-probe compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.options import Command, option

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.comparison import Comparison

_HEADINGS = {
    "rate": "best peak lr", "mean": "mean", "low": "95 % from", "high": "to", "seeds": "seeds",
    "p": "p against the best", "epochs_to_target": "epochs to target", "rates": "rates tried",
    "optimism": "too good by up to", "runs": "runs", "diverged": "diverged", "unfinished": "unfinished",
    "reached_target": "runs that reached it",
}  # fmt: skip
"""Headings of the table, after the fields of its rows and columns."""


@click.command(cls=Command, name="compare")
@analysis_options
@option("--metric", section="Analysis", default="test_acc1", help="Column of epochs to compare, at the last epoch.")
@option("--rows", section="Analysis", default="optimizer,schedule,lmbda", help="Fields of the rows, with commas.")
@option("--columns", section="Analysis", default="batch_size", help="Fields of the columns, with commas.")
@option("--target", section="Analysis", type=float, help="Test accuracy (%) to count the epochs to.")
def command(runs: tuple[Path, ...], output: Output, metric: str, rows: str, columns: str, target: float | None) -> None:
    """How do optimizers, batch sizes and schedules compare?

    Each cell at its best learning rate: mean and 95 % interval over seeds, epochs to a target accuracy, and how many
    runs diverged. The rate is chosen on held-out data (train --val) where every run has some. A cell is the best if it
    is apart from each of the others; docs/evidence/verdicts.md tells how often that is said of cells that are alike.
    """
    from tvlars_probe.analyses.of_runs import comparison_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    sources = [Source(run) for run in open_runs(runs)]
    fields = [tuple(name.strip() for name in names.split(",") if name.strip()) for names in (rows, columns)]
    result = comparison_of(sources, metric=metric, rows=fields[0], columns=fields[1], target=target)
    emit(output, result, result.table, lambda c: render(c, result))


def _chosen_on(result: Comparison) -> str:
    if result.chosen_on != result.metric:
        return result.chosen_on
    advice = "" if result.metric.startswith("val_") else ": train with --val to choose on held-out data"
    return f"{result.metric} itself{advice}"


def render(console: Console, result: Comparison) -> None:
    """Print the comparison."""
    from tvlars_probe.analyses.comparison_verdict import optimism_text

    print_verdict(console, result.verdict, title=counted(len(result.runs), "run"))
    if (result.table["rates"] > 1).any() and result.table["mean"].notna().any():
        console.print(f"Learning rates were chosen on {_chosen_on(result)}")
    if told := optimism_text(result.table):
        console.print(told, soft_wrap=True)
    if result.columns:
        console.print()
        console.print(_pivot(result))
    headings = {name: name for name in (*result.rows, *result.columns)} | _HEADINGS
    if result.target is None:
        headings.pop("epochs_to_target")
        headings.pop("reached_target")
    console.print()
    console.print(table_of(result.table, headings))


def _key_text(key: Any) -> str:
    """The text of a column's name, which is a tuple where ``--columns`` has several fields."""
    return " × ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _pivot(result: Comparison) -> Any:
    """The table as papers print it: a row per setting, a column for each value of the fields in ``--columns``."""
    wide = result.pivot()
    named = " × ".join(result.columns)
    wide.columns = [f"{named} {key}" for key in wide.columns.map(_key_text)]
    return table_of(
        wide.reset_index(), title=f"{result.metric}, mean and 95 % interval over seeds, best learning rate of each"
    )
