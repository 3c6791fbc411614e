"""Does LARS need warm-up, and does TVLARS beat it? The runs, and the answers.

    python -m benchmarks.study run       trains what isn't finished: hours, and resumable

Runs are trained in stages, since the settings of later ones are chosen by earlier ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.study import experiments
from benchmarks.verdicts.grid import train
from tvlars_probe.errors import InterruptedRunError
from tvlars_probe.runners.sweeps.trials import FINISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.runners.sweeps.trials import Trial


@click.group()
def main() -> None:
    """The TVLARS paper's claims, put to the test."""


@main.command()
@click.option(
    "--runs", "folder", type=click.Path(path_type=Path), default=Path("runs/study"), show_default=True,
    help="Folder of the runs.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes at once.")
@click.option("--case", "cases", type=click.Choice([*experiments.CASES]), multiple=True, help="Only these cases.")
def run(folder: Path, jobs: int, cases: tuple[str, ...]) -> None:
    """Train the runs that aren't finished yet, in stages."""
    for name, trials in _stages(cases or tuple(experiments.CASES), folder):
        click.echo(f"{name}: {len(trials)} runs in {folder}, {jobs} at once")
        try:
            found = train(trials, folder, jobs)
        except InterruptedRunError:
            raise click.ClickException("interrupted; the same command goes on") from None
        if unfinished := sum(end.status not in FINISHED for end in found):
            raise click.ClickException(f"{unfinished} runs aren't finished; the same command tries again")


def _stages(cases: tuple[str, ...], folder: Path) -> Iterator[tuple[str, list[Trial]]]:
    """The stages with their runs; those of a stage are known once the stage before is trained."""
    for case in cases:
        yield f"{case}, settings", experiments.searched(case, folder)
        yield f"{case}, seeds", experiments.trained(case, folder)
        yield f"{case}, delay factors", experiments.delayed(case, folder)
    if experiments.VARIED in cases:
        yield f"{experiments.VARIED}, initialisations", experiments.initialised(folder)


if __name__ == "__main__":
    main()
