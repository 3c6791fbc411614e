"""The grid: its files, its runs, and training them."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvlars_probe.analyses.warmup.paired_gain import UNKNOWN
from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.errors import InterruptedRunError
from tvlars_probe.optimizers.registry import OPTIMIZERS
from tvlars_probe.optimizers.schedules import REFERENCE_BATCH_SIZE
from tvlars_probe.runners.sweeps.grid import Grid, read_grid
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
from tvlars_probe.runners.sweeps.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from tvlars_probe.runners.sweeps.trials import Outcome, Trial

HERE = Path(__file__).parent
GRIDS = {path.stem: path for path in sorted(HERE.glob("*.toml"))}
"""Files of the grid, one for each data set, model and optimizer, by name."""


def trials_of(names: Sequence[str], folder: Path, seeds: Sequence[int] = ()) -> list[Trial]:
    """The runs of some grids, in the order of the names.

    Args:
        names: of the grids, among `GRIDS`.
        folder: of all runs.
        seeds: in place of the files' own, if any are given.
    """
    other = Grid(axes={"seeds": tuple(map(str, seeds))}) if seeds else Grid()
    return [trial for name in names for trial in build_trials(read_grid(str(GRIDS[name])) | other, folder)]


def of_open_cells(trials: Sequence[Trial], truth: pd.DataFrame) -> list[Trial]:
    """The trials of cells in which it is unknown what warm-up changed, by the table of `outcomes.truth_of`."""
    rows = truth[truth["outcome"] == UNKNOWN]
    names = zip(rows["data"], rows["model"], rows["optimizer"], map(_rate_text, rows["peak_lr"]), strict=True)
    cells = {*names}
    return [trial for trial in trials if _cell(trial) in cells]


def _cell(trial: Trial) -> tuple[str, str, str, str]:
    config = trial.config
    # What lars-warm reaches.
    peak = config.optimizer.peak * config.batch_size / REFERENCE_BATCH_SIZE
    return config.data.name, config.model.name, OPTIMIZERS[config.optimizer.name].class_name, _rate_text(peak)


def _rate_text(rate: float) -> str:
    """A rate as text, so that rounding keeps no two equal ones apart."""
    return f"{rate:.6g}"


def train(trials: Sequence[Trial], folder: Path, jobs: int) -> list[Outcome]:
    """Train the runs that aren't finished, ``jobs`` at once; a line for each that has ended.

    Each process is a sweep of all runs, and sweeps of one folder share them out. This process is one of them.

    Raises:
        InterruptedRunError: a signal ended it; the runs that were being trained have a checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    helpers = [context.Process(target=_help, args=(trials, folder)) for _ in range(jobs - 1)]
    for helper in helpers:
        helper.start()
    try:
        return _sweep(trials, folder, _progress(len(trials)))
    except BaseException:
        for helper in helpers:
            helper.terminate()  # SIGTERM, by which a run ends in order
        raise
    finally:
        for helper in helpers:
            helper.join()


def _help(trials: Sequence[Trial], folder: Path) -> None:
    """What a helper process does: the same sweep, from the other end, without a word, as long as its parent lives."""
    parent = multiprocessing.parent_process()

    def ended(*_: object) -> None:
        if parent is not None and not parent.is_alive():
            sys.exit("the process that started this one is gone")

    with contextlib.suppress(InterruptedRunError):
        _sweep([*reversed(trials)], folder, ended)


def _sweep(trials: Sequence[Trial], folder: Path, ended: Callable[[Trial, Outcome], None]) -> list[Outcome]:
    return sweep(trials, LaunchPlan(), folder, ended)


def _progress(total: int) -> Callable[[Trial, Outcome], None]:
    """What prints the line of a run that has ended, first of those that were finished before."""
    count = 0

    def ended(trial: Trial, outcome: Outcome) -> None:
        nonlocal count
        count += 1
        accuracy = "" if outcome.best_test_acc1 is None else f", best test accuracy {outcome.best_test_acc1:.1f} %"
        error = "" if outcome.error is None else f": {outcome.error}"
        click.echo(f"{count}/{total}  {trial.path.name}  {outcome.status}{accuracy}{error}")

    return ended
