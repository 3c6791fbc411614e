"""LARS without warm-up, LARS with it, and TVLARS at a large batch: do they differ, and by how much?

1,150 handwritten digits in batches of 512 are three updates per epoch. Each method is trained at every peak rate of one
grid with three seeds; the rate is then the same for all three: the one at which any of them reaches the highest
accuracy on held-out images. Test accuracies are read at that rate only. At last one run of each method is repeated at
that rate with the Hessian's sharpness measured on the way, which doesn't change it, and the three are put on one page:
report.html in the folder of the runs. `make demo` runs this.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import click
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from tvlars_probe import open_run, open_runs
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.train import train

PEAKS = (8.0, 16.0, 32.0, 64.0)
SEEDS = (0, 1, 2)
BATCH, EPOCHS, HELD_OUT = 512, 30, 0.2
SHARPNESS = SharpnessConfig(every="log", samples=256, tol=0.01)


@dataclass(frozen=True)
class Method:
    """One way to train, at a given peak rate."""

    title: str
    name: str
    optimizer: str
    schedule: str
    lmbda: float = 0.001  # only TVLARS reads it

    def config(self, peak: float, seed: int, sharpness: SharpnessConfig | None = None) -> TrainConfig:
        # lars-warm multiplies its rate by batch/256; divided here, the peak is the one that the others have.
        lr = peak / (BATCH / 256) if self.schedule == "lars-warm" else peak
        return TrainConfig(
            data=DataConfig(name="digits", val=HELD_OUT),
            optimizer=OptimizerConfig(name=self.optimizer, lr=lr, lmbda=self.lmbda),
            schedule=ScheduleConfig(name=self.schedule),
            sharpness=sharpness or SharpnessConfig(),
            # Beside the sharpness, spectral norms once an epoch.
            recording=RecordConfig(spectral_every=3 if sharpness else None),
            batch_size=BATCH,
            epochs=EPOCHS,
            seed=seed,
        )


METHODS = (
    Method("LARS", "lars", "lars", "none"),
    Method("LARS with warm-up", "lars-warm", "lars", "lars-warm"),
    Method("TVLARS", "tvlars", "tvlars", "none", lmbda=0.01),  # phi falls from 0.9 to 0.4 over these 90 updates
)


def trained(method: Method, peak: float, seed: int, folder: Path) -> dict[str, object]:
    """Train one run, or take it as it was left by an earlier call, and read its trace."""
    path = train(method.config(peak, seed), folder / f"{method.name}-peak{peak:g}-seed{seed}", quiet=True)
    with_trace = open_run(path)
    last = with_trace.frame("epochs").iloc[-1]
    layers = with_trace.frame("layers", columns=["step", "parameter", "weight_norm"])
    first = layers[layers.parameter == layers.parameter.iloc[0]]
    return {
        "method": method.title,
        "peak": peak,
        "seed": seed,
        "val": last.val_acc1,
        "test": last.test_acc1,
        "growth": first.weight_norm.max() / first.weight_norm.iloc[0],
    }


def interval(values: list[float]) -> str:
    """Mean and half width of Student's 95 % interval over the seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def show_grid(console: Console, runs: pd.DataFrame, chosen: float) -> None:
    table = Table(title=f"Held-out accuracy (%), mean of {len(SEEDS)} seeds")
    table.add_column("peak rate", justify="right")
    means = runs.pivot_table(index="peak", columns="method", values="val")
    for method in METHODS:
        table.add_column(method.title, justify="right")
    for peak, row in means.iterrows():
        cells = [f"{row[method.title]:.1f}" for method in METHODS]
        table.add_row(f"{peak:g}" + (" *" if peak == chosen else "  "), *cells)
    console.print(table)


def show_comparison(console: Console, runs: pd.DataFrame, chosen: float) -> None:
    at_peak = runs[runs.peak == chosen]
    table = Table(title=f"Test accuracy (%) at peak rate {chosen:g}, batch {BATCH}, {EPOCHS} epochs")
    for column in ("method", "each seed", "mean ± 95 %", "minus LARS", "‖w‖ grows"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    plain = at_peak[at_peak.method == METHODS[0].title].sort_values("seed").test.to_numpy()
    for method in METHODS:
        own = at_peak[at_peak.method == method.title].sort_values("seed")
        against = "" if method is METHODS[0] else interval(list(own.test.to_numpy() - plain))
        each = " ".join(f"{value:.1f}" for value in own.test)
        table.add_row(method.title, each, interval(list(own.test)), against, f"{own.growth.mean():.0f}x")
    console.print(table)


def write_report(peak: float, folder: Path) -> Path:
    """Repeat one run of each method with its sharpness on record, and put the three on one page."""
    names = [f"{method.name}-peak{peak:g}-seed{SEEDS[0]}-sharpness" for method in METHODS]
    for method, name in track(list(zip(METHODS, names, strict=True)), "Measuring sharpness"):
        train(method.config(peak, SEEDS[0], SHARPNESS), folder / name, quiet=True)
    return open_runs(folder / name for name in names).report(folder / "report.html")


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
def main(run_dir: Path) -> None:
    """Train the whole grid and print the comparison."""
    console = Console(highlight=False)
    jobs = [(method, peak, seed) for peak in PEAKS for method in METHODS for seed in SEEDS]
    rows = [trained(*job, run_dir) for job in track(jobs, f"Training {len(jobs)} runs into {run_dir}")]
    runs = pd.DataFrame(rows)
    best = runs.pivot_table(index="peak", columns="method", values="val").max(axis="columns")
    chosen = PEAKS[int(best.to_numpy().argmax())]
    show_grid(console, runs, chosen)
    console.print("* chosen for all three: the best accuracy of this grid is in its row\n")
    show_comparison(console, runs, chosen)
    console.print(
        "± is Student's 95 % interval over the seeds, paired by seed in the differences;\n"
        "‖w‖ grows: the first layer's highest weight norm over its initial one\n"
    )
    page = write_report(chosen, run_dir)
    console.print(f"Look into one of them:  tvlars-probe show {run_dir}/lars-peak{chosen:g}-seed0", soft_wrap=True)
    console.print(f"All three on one page:  {page.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
