"""The truth by which verdicts on warm-up are measured: a grid of paired runs, with warm-up and without.

    python -m benchmarks.verdicts run          trains the grid: hours, and resumable
    python -m benchmarks.verdicts outcomes     writes outcomes.csv and truth.csv beside this file
    python -m benchmarks.verdicts features     writes features.parquet there
    python -m benchmarks.verdicts rules        fits the rule on warm-up and tells how often it is right: seconds

Every file ``<name>.toml`` beside this one is a grid for ``tvlars-probe sweep``. Both sides of a pair have the schedule
lars-warm: after its warm-up, which one of them leaves out, it falls as a half cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.verdicts import features, outcomes, page, rule_tables, rules
from benchmarks.verdicts.grid import GRIDS, HERE, of_open_cells, train, trials_of
from tvlars_probe.errors import InterruptedRunError
from tvlars_probe.runners.sweeps.trials import FINISHED
from tvlars_probe.runs import open_runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.runs import Run

DECIMALS = 3
"""Decimals of percent that accuracies are written with."""

FURTHER_SEEDS = (3, 4)
"""Seeds that are trained where three leave open what warm-up changed."""

_runs = click.option(
    "--runs", "folder", type=click.Path(path_type=Path), default=Path("runs/verdicts"), show_default=True,
    help="Folder of the grid's runs.",
)  # fmt: skip
_out = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=HERE, show_default=True, help="Where to write."
)


@click.group()
def main() -> None:
    """The grid of paired runs by which verdicts are measured."""


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(list(GRIDS)), metavar="[GRID]...")
@_runs
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes at once.")
@click.option("--seeds", type=int, multiple=True, help="These seeds in place of the files' own; may be repeated.")
@click.option(
    "--open", "is_open", is_flag=True, help="Only cells whose outcome in truth.csv is unknown; seeds 3 and 4."
)
@click.option("--first", type=click.IntRange(1), help="Only the first so many runs.")
def run(
    names: tuple[str, ...], folder: Path, jobs: int, seeds: tuple[int, ...], is_open: bool, first: int | None
) -> None:
    """Train the runs of some grids (by default all) that aren't finished yet."""
    trials = trials_of(names or [*GRIDS], folder, seeds or (FURTHER_SEEDS if is_open else ()))
    trials = (of_open_cells(trials, _truth()) if is_open else trials)[:first]
    click.echo(f"{len(trials)} runs in {folder}, {jobs} at once")
    try:
        found = train(trials, folder, jobs)
    except InterruptedRunError:
        raise click.ClickException("interrupted; the same command goes on") from None
    open_ends = [f"{trial.path}: {end.status}" for trial, end in zip(trials, found, strict=True)
                 if end.status not in FINISHED]  # fmt: skip
    if open_ends:
        listed = "\n".join(open_ends)
        raise click.ClickException(f"{len(open_ends)} runs aren't finished; the same command tries again:\n{listed}")


@main.command("outcomes")
@_runs
@_out
def write_outcomes(folder: Path, out: Path) -> None:
    """Write how each run ended (outcomes.csv), and what warm-up changed at each peak rate (truth.csv)."""
    rows = outcomes.outcomes_of(_finished(folder))
    truth = outcomes.truth_of(rows)
    for name, table in (("outcomes.csv", rows), ("truth.csv", truth)):
        accuracies = [column for column in table.select_dtypes("float") if column not in outcomes.IDENTITY]
        table.round(dict.fromkeys(accuracies, DECIMALS)).to_csv(out / name, index=False)
    click.echo(truth.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    click.echo(f"{len(rows)} runs, {len(truth)} cells: {truth['outcome'].value_counts().to_dict()}")


@main.command("features")
@_runs
@_out
def write_features(folder: Path, out: Path) -> None:
    """Write what rules may read of each run (features.parquet)."""
    rows = features.features_of(_finished(folder))
    rows.to_parquet(out / "features.parquet", index=False, compression="zstd")
    click.echo(f"{len(rows)} runs, {rows.shape[1]} columns, {(out / 'features.parquet').stat().st_size / 1024:.0f} KiB")


@main.command("rules")
@click.option(
    "--write", is_flag=True, help="Write model.json of the package, and the tables of docs/evidence/verdicts.md."
)
def of_rules(write: bool) -> None:
    """Fit the rule on warm-up, and tell how often it is right of data sets and models that it wasn't fitted on."""
    text = rule_tables.text()
    click.echo(text)
    if write:
        rule_tables.MODEL.write_text(rules.model_text(), encoding="utf-8")
        page.write(rule_tables.COMMAND, text)


def _truth() -> pd.DataFrame:
    path = HERE / "truth.csv"
    if not path.exists():
        raise click.ClickException(f"{path} is missing: python -m benchmarks.verdicts outcomes")
    return pd.read_csv(path)


def _finished(folder: Path) -> Iterable[Run]:
    """The runs that are finished, in order of their names; the others are counted aloud."""
    runs = sorted(open_runs([str(folder)]), key=lambda run: run.name) if folder.is_dir() else []
    found = [run for run in runs if run.status in FINISHED]
    if not found:
        raise click.ClickException(f"{folder} holds no finished run: python -m benchmarks.verdicts run")
    if len(found) < len(runs):
        click.echo(f"{len(runs) - len(found)} of {len(runs)} runs aren't finished and left out", err=True)
    return track(found, "reading", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
