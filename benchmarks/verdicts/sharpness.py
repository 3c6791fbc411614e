"""Does sharpness at the end predict the test accuracy, or the gap to it, over the runs of a grid?

    python -m benchmarks.verdicts.sharpness --runs runs/verdicts --measure --out FILE   measures: hours
    python -m benchmarks.verdicts.sharpness --write                                     writes the tables: seconds

The second command reads ends.csv beside this file, which the first one has written of the grid's runs on digits, and
writes the tables of docs/evidence/verdicts.md.

A point is a setting, the mean over its seeds: runs that differ in their seed alone are no evidence of their own. The
settings of one data set and model are ranked, per optimizer and over all of them. Where optimizers differ both in
sharpness and in accuracy, the pooled correlation tells of that difference, and not of what holds within any of them.
Runs below ``--least`` percent have learned too little to be in a minimum and are left out; so are those that diverged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pandas as pd

from tvlars_probe.analyses.correlation import NEAR
from tvlars_probe.analyses.intervals import rank_correlation
from tvlars_probe.analyses.minimizer import DECIDING
from tvlars_probe.analyses.of_runs import minimizer_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.curvature.measures import Measures
from tvlars_probe.runners.posthoc.curvature import SharpnessJob, measure_run
from tvlars_probe.runs import open_runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.runs import Run

ENDS = Path(__file__).with_name("ends.csv")
"""A row per run of the grid's part on digits, as `ends_of` gives them."""

LEAST = 50.0
"""Runs below this test accuracy, in percent, have learned too little to be in a minimum."""

OPERATORS = ("hessian", "relative", "ggn", DECIDING)
"""The operators whose top eigenvalues are measured and correlated."""

SETTING = ["data", "model", "optimizer", "schedule", "warmup_epochs", "peak_lr", "batch_size"]
"""What runs that differ in their seed alone have in common."""

OUTCOMES = ("test_accuracy", "gap")
"""What each sharpness is correlated with, in percent and in percentage points."""

POOLED = "all"
"""In place of an optimizer's name."""

COLUMNS = ["data", "model", "optimizer", "sharpness", "outcome", "rho", "low", "high", "by_chance_share", "settings"]
"""Columns of the table that `correlations` makes."""


def ends_of(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per run: its columns `SETTING`, ``seed``, the columns `OUTCOMES`, and the last sharpness by operator.

    ``gap`` is train_eval_acc1 − test_acc1, or where that isn't recorded train_acc1 − test_acc1 of the last epoch.
    Sharpness is of the whole model in BatchNorm's eval mode on training data; null where it wasn't measured so.
    """
    rows = []
    for run in runs:
        source = Source(run)
        facts, epochs = source.facts, source.epochs(["train_acc1", "train_eval_acc1", "test_acc1"])
        last = epochs[epochs["test_acc1"].notna()].tail(1)
        accuracy = float(last["test_acc1"].iloc[0]) if len(last) else math.nan
        train = last["train_eval_acc1"].fillna(last["train_acc1"])
        curves = minimizer_of(source, bn_mode="eval").curves
        measured: dict[str, float] = dict(zip(curves["operator"], curves["value"], strict=True))  # the last of each
        schedule = facts.config.get("schedule") or {}
        rows.append(
            {
                "data": facts.data,
                "model": facts.model,
                "optimizer": facts.optimizer,
                "schedule": facts.schedule,
                "warmup_epochs": schedule.get("warmup_epochs"),
                "peak_lr": facts.peak_lr,
                "batch_size": facts.batch_size,
                "seed": facts.seed,
                "test_accuracy": accuracy,
                "gap": float(train.iloc[0]) - accuracy if len(last) else math.nan,
                **{name: measured.get(name, math.nan) for name in OPERATORS},
            }
        )
    return pd.DataFrame(rows)


def correlations(ends: pd.DataFrame, *, least: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Spearman's ρ of each sharpness with each outcome, over settings, with its 95 % bootstrap interval.

    Args:
        ends: a row per run, as `ends_of` gives them.
        least: runs with a test accuracy below this, in percent, are left out.
        seed: of the bootstrap.

    Returns:
        a row per data set, model, optimizer (`POOLED` for all of them), sharpness and outcome: the columns `COLUMNS`;
        ``low`` and ``high`` are null below eight settings.
    """
    kept = ends[ends["test_accuracy"] >= least]
    figures = [*OPERATORS, *OUTCOMES]
    points = kept.groupby(SETTING, dropna=False, as_index=False)[figures].mean()
    rows = []
    for (data, model), of_task in points.groupby(["data", "model"]):
        groups = {str(name): some for name, some in of_task.groupby("optimizer")} | {POOLED: of_task}
        for optimizer, some in groups.items():
            for sharpness in OPERATORS:
                for outcome in OUTCOMES:
                    found = rank_correlation(some[sharpness], some[outcome], seed=seed, near=NEAR)
                    told = (found.rho, found.low, found.high, found.chance, found.count)
                    rows.append((data, model, optimizer, sharpness, outcome, *told))
    return pd.DataFrame(rows, columns=COLUMNS)


def measure_lacking(runs: Iterable[Run], samples: int) -> None:
    """Measure `OPERATORS` at the last checkpoint of each run where adaptive sharpness isn't on record there."""
    for run in runs:
        rows = run.curvature(["operator", "bn_mode"])
        if not ((rows["operator"] == DECIDING) & (rows["bn_mode"] == "eval")).any():
            click.echo(run.name)
            measure_run(SharpnessJob(run=run.path, measures=Measures(operators=OPERATORS), samples=samples))


@click.command(name="sharpness")
@click.option(
    "--runs", "folder", type=click.Path(path_type=Path), help="Folder of the runs. [default: the committed ends]"
)
@click.option("--measure", is_flag=True, help="Measure at the last checkpoints what isn't on record.")
@click.option("--samples", default=256, show_default=True, help="Training samples to measure on.")
@click.option("--least", default=LEAST, show_default=True, help="Leave out runs below this test accuracy, in percent.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the runs' ends there, as CSV.")
@click.option(
    "--write", "writes", is_flag=True, help="Write the committed runs' tables into docs/evidence/verdicts.md."
)
def main(folder: Path | None, measure: bool, samples: int, least: float, out: Path | None, writes: bool) -> None:
    """Correlate the sharpness at the end of a grid's runs with how they generalise."""
    from benchmarks.verdicts import page, sharpness_tables  # the second of which reads this module

    if writes:
        if folder is not None or least != LEAST:
            raise click.UsageError("--write takes the committed ends as they are: leave out --runs and --least")
        page.write(sharpness_tables.COMMAND, sharpness_tables.text(correlations(pd.read_csv(ENDS), least=LEAST)))
        return
    if folder is None:
        if measure or out is not None:
            raise click.UsageError("--measure and --out need --runs, the folder of the runs")
        ends = pd.read_csv(ENDS)
    else:
        runs = sorted((run for run in open_runs([str(folder)]) if run.status == "completed"), key=lambda run: run.name)
        if measure:
            measure_lacking(runs, samples)
        ends = ends_of(runs)
    if out is not None:
        ends.to_csv(out, index=False, float_format="%.5g")
    table = correlations(ends, least=least)
    click.echo(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


if __name__ == "__main__":
    main()
