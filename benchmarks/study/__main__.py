"""Does LARS need warm-up, and does TVLARS beat it? The runs, and the answers.

    python -m benchmarks.study run       trains what isn't finished: hours, and resumable
    python -m benchmarks.study results   writes results.csv beside this file
    python -m benchmarks.study tables    writes the tables of docs/evidence/study.md from results.csv: seconds

Runs are trained in stages, since the settings of later ones are chosen by earlier ones.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.study import experiments, page
from benchmarks.study.results import groups, results_of
from benchmarks.verdicts.grid import train
from tvlars_probe.errors import InterruptedRunError
from tvlars_probe.runners.sweeps.trials import FINISHED

DECIMALS = 5
"""Significant digits of what is written."""

_runs = click.option(
    "--runs", "folder", type=click.Path(path_type=Path), default=Path("runs/study"), show_default=True,
    help="Folder of the runs.",
)  # fmt: skip
_cases = click.option("--case", "cases", type=click.Choice([*experiments.CASES]), multiple=True,
                      help="Only these cases.")  # fmt: skip


@click.group()
def main() -> None:
    """The TVLARS paper's claims, put to the test."""


@main.command()
@_runs
@_cases
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes at once.")
def run(folder: Path, cases: tuple[str, ...], jobs: int) -> None:
    """Train the runs that aren't finished yet, in stages."""
    for name, trials in experiments.stages(cases or tuple(experiments.CASES), folder):
        click.echo(f"{name}: {len(trials)} runs in {folder}, {jobs} at once")
        try:
            found = train(trials, folder, jobs)
        except InterruptedRunError:
            raise click.ClickException("interrupted; the same command goes on") from None
        if unfinished := sum(end.status not in FINISHED for end in found):
            raise click.ClickException(f"{unfinished} runs aren't finished; the same command tries again")


@main.command("results")
@_runs
@_cases
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=page.RESULTS, show_default=True,
              help="Where to write.")  # fmt: skip
def write_results(folder: Path, cases: tuple[str, ...], out: Path) -> None:
    """Write what each run came to."""
    rows = results_of(groups(cases or tuple(experiments.CASES), folder))
    rows.to_csv(out, index=False, float_format=f"%.{DECIMALS}g")
    click.echo(f"{len(rows)} runs")


@main.command("tables")
def write_tables() -> None:
    """Write the tables of docs/evidence/study.md from the committed results."""
    text = page.PAGE.read_text(encoding="utf-8")
    page.PAGE.write_text(page.filled(text, page.results()), encoding="utf-8")


if __name__ == "__main__":
    main()
