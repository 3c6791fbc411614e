"""How often `tvlars-probe compare` calls settings apart that are alike, and how often its intervals hold.

    python -m benchmarks.verdicts.comparison simulate      drawn accuracies: a minute or two
    python -m benchmarks.verdicts.comparison run           480 short runs on digits, and their table: resumable
    python -m benchmarks.verdicts.comparison seeds         that table: the same questions to real runs

The runs are 40 seeds in each of twelve cells. The seeds of a cell, dealt out at random, are settings that are alike.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.verdicts import seeds as seeds_of_cells
from benchmarks.verdicts import simulated_settings
from benchmarks.verdicts.grid import train
from tvlars_probe.analyses.apart import LEVEL, Pairs
from tvlars_probe.analyses.held_out_choice import split_mean
from tvlars_probe.errors import InterruptedRunError
from tvlars_probe.runners.sweeps.trials import FINISHED

CELL = ["model", "optimizer", "rate"]
SIZES = (3, 5, 10)
"""Seeds in a group."""


def apart_of_alike(values: np.ndarray, size: int, orders: int, rng: np.random.Generator) -> tuple[float, int]:
    """The share of pairs of groups of one cell that Welch's t calls apart, and how many pairs don't share a seed.

    Args:
        values: the cell's accuracies, (S,).
        size: seeds of a group, n; a random order of the seeds holds ⌊S/2n⌋ pairs.
        orders: number of random orders.
        rng: draws them.
    """
    pairs = len(values) // (2 * size)
    dealt = rng.permuted(np.tile(values, (orders, 1)), axis=1)[:, : pairs * 2 * size].reshape(orders, pairs, 2, size)
    means, errors = dealt.mean(axis=-1), dealt.std(axis=-1, ddof=1) / size**0.5
    counts = np.array(float(size))
    scatter = Pairs(errors=(errors[..., 0], errors[..., 1]), seeds=(counts, counts))
    return float((scatter.chance(np.abs(means[..., 0] - means[..., 1])) < LEVEL).mean()), pairs


def coverage(values: np.ndarray, size: int, draws: int, rng: np.random.Generator) -> float:
    """How often Student's interval over ``size`` seeds holds the mean of all.

    The seeds are drawn with replacement: the mean of a group that is a part of all lies closer to their mean.
    """
    drawn = rng.choice(values, (draws, size))
    half = stats.t.ppf(1 - LEVEL / 2, size - 1) * drawn.std(axis=1, ddof=1) / size**0.5
    return float((np.abs(drawn.mean(axis=1) - values.mean()) <= half + 1e-9).mean())


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` independent cases."""
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def of_cells(table: pd.DataFrame, orders: int) -> pd.DataFrame:
    """A row per cell and group size, and one for all cells: the share called apart with its interval, and coverage."""
    rows = []
    for size in SIZES:
        rng = np.random.default_rng(size)
        found = []
        for key, cell in table.groupby(CELL):
            values = cell["test_acc1"].to_numpy(float)
            share, pairs = apart_of_alike(values, size, orders, rng)
            found.append({**dict(zip(CELL, key, strict=True)), "seeds": size, "mean": values.mean(),
                          "deviation": values.std(ddof=1), "skewness": float(stats.skew(values)), "apart_share": share,
                          "pairs": pairs, "coverage_share": coverage(values, size, 100 * orders, rng)})  # fmt: skip
        shares = pd.DataFrame(found)
        pooled = {"model": "all", "seeds": size, "apart_share": shares["apart_share"].mean(),
                  "pairs": shares["pairs"].sum(), "coverage_share": shares["coverage_share"].mean()}  # fmt: skip
        rows += [*found, pooled]
    result = pd.DataFrame(rows)
    ends = [wilson(share, count) for share, count in zip(result["apart_share"], result["pairs"], strict=True)]
    result[["low_share", "high_share"]] = ends
    return result


def choices(table: pd.DataFrame, draws: int) -> pd.DataFrame:
    """How much too good the better of a method's two rates is, by the seeds that chose it: against all its seeds."""
    rows = []
    for (model, optimizer), cells in table.groupby(CELL[:2]):
        values = cells.pivot_table(index="rate", columns="seed", values="test_acc1").to_numpy(float)
        for size in SIZES:
            rng = np.random.default_rng(size)
            plain, held_out = [], []
            for _ in range(draws):
                drawn = values[:, rng.choice(values.shape[1], size)]
                best = drawn.mean(axis=1).argmax()
                plain.append(drawn[best].mean() - values[best].mean())
                held_out.append(split_mean(drawn, drawn) - values[best].mean())
            rows.append({"model": model, "optimizer": optimizer, "seeds": size, "too_good": np.mean(plain),
                         "held_out_too_good": np.mean(held_out)})  # fmt: skip
    return pd.DataFrame(rows)


def correlation_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Per model: the mean correlation of the accuracies of two cells over the seeds that they share."""
    rows = []
    for model, cells in table.groupby("model"):
        wide = cells.pivot_table(index="seed", columns=CELL[1:], values="test_acc1")
        matrix = wide.loc[:, wide.std() > 0].corr().to_numpy()
        rows.append({"model": model, "correlation": matrix[np.triu_indices(len(matrix), 1)].mean()})
    return pd.DataFrame(rows)


@click.group()
def main() -> None:
    """How often settings that are alike are called apart."""


@main.command()
@click.option("--draws", default=10_000, show_default=True, help="Draws of each case with one rate.")
@click.option("--choices", "chosen", default=2_000, show_default=True, help="Draws of each case with several rates.")
def simulate(draws: int, chosen: int) -> None:
    """Drawn accuracies: settings that are alike, and rates chosen on their own seeds."""
    click.echo(_text(simulated_settings.alike(draws)))
    click.echo(_text(simulated_settings.chosen(chosen)))


@main.command()
@click.option("--runs", "folder", type=click.Path(path_type=Path), default=Path("runs/seeds"), show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at once.")
@click.option("--seeds", type=click.IntRange(1), default=seeds_of_cells.SEEDS, show_default=True, help="In each cell.")
@click.option("--out", type=click.Path(path_type=Path), default=seeds_of_cells.TABLE, show_default=True)
def run(folder: Path, jobs: int, seeds: int, out: Path) -> None:
    """Train what isn't finished of the runs, and write their table."""
    trials = seeds_of_cells.trials_in(folder, seeds)
    try:
        outcomes = train(trials, folder, jobs)
    except InterruptedRunError:
        raise click.ClickException("interrupted; the same command goes on") from None
    unfinished = sum(outcome.status not in FINISHED for outcome in outcomes)
    if unfinished:
        raise click.ClickException(f"{unfinished} of {len(trials)} runs aren't finished: the same command tries again")
    seeds_of_cells.table_of(trials).to_csv(out, index=False)
    click.echo(f"{len(trials)} runs: {out}")


@main.command("seeds")
@click.option("--table", type=click.Path(path_type=Path), default=seeds_of_cells.TABLE, show_default=True)
@click.option("--orders", default=200, show_default=True, help="Random orders of the seeds of each cell.")
def of_seeds(table: Path, orders: int) -> None:
    """Real runs: seeds of one cell dealt into two groups, intervals, and the choice between two rates."""
    if not table.is_file():
        raise click.ClickException(f"there is no {table}: python -m benchmarks.verdicts.comparison run")
    rows = pd.read_csv(table)
    click.echo(_text(of_cells(rows, orders)))
    click.echo(_text(choices(rows, 5 * orders)))
    click.echo(_text(correlation_over_seeds(rows)))


def _text(frame: pd.DataFrame) -> str:
    """A frame with shares in percent."""
    # A rate is shown as it is: two decimals would make 0.002 zero.
    frame = frame.assign(
        **{name: frame[name].map("{:g}".format, na_action="ignore") for name in frame if name == "rate"}
    )
    shares = [name for name in frame.columns if name.endswith("_share")]
    told = frame.assign(**{name: 100 * frame[name] for name in shares})
    named = {name: name.removesuffix("_share") + " %" for name in shares}
    return str(told.rename(columns=named).round(2).to_string(index=False, na_rep="")) + "\n"


if __name__ == "__main__":
    main()
