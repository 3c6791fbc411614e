"""SGD's batch sharpness settles at 2/rate while the top eigenvalue lies below (arXiv:2412.20553): on the digits, seeds.

    python -m benchmarks.batch_sharpness --picture docs/images/batch-sharpness.png

An MLP of two hidden layers with tanh learns the digits' labels as numbers, by squared error, which goes on long enough
for the sharpness to rise; SGD without momentum, mini-batches drawn without replacement. Every 400 updates the top
eigenvalue, batch sharpness at the run's own batch, critical and directional sharpness are measured, on the 1,024 first
samples.
"""

import math
import statistics
import tempfile
from pathlib import Path

import click
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tvlars_probe

SAMPLES = 1024


def digits() -> tuple[Tensor, Tensor]:
    """Images as 64 numbers around 0, labels as one of ten numbers 1, in random order."""
    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 8 - 1
    return x, nn.functional.one_hot(torch.tensor(found.target)[order], 10).float()


def squares(z: Tensor, y: Tensor) -> Tensor:
    """Half of the squared error, summed over the outputs."""
    return (z - y).square().sum(1).mean() / 2


def trained(folder: Path, *, batch_size: int, lr: float, steps: int, every: int, seed: int) -> pd.DataFrame:
    """Train, and return the rows of ``curvature``."""
    torch.manual_seed(seed)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    probe = tvlars_probe.SharpnessProbe(
        model, squares, (x, y), every=every, measures=("eigenvalue", "batch", "directional", "critical"),
        batch_size=batch_size, tol=0.01,
    )  # fmt: skip
    path = folder / f"b{batch_size}-seed{seed}"
    with tvlars_probe.record(model, optimizer, path, probes=[probe], detail="none") as rec:
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(x))
            chosen, order = order[:batch_size], order[batch_size:]
            loss = squares(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=batch_size)
    rows = tvlars_probe.open_run(path).curvature()
    return rows.assign(batch=batch_size, seed=seed, limit=2 / lr, share=rows["value"] * lr / 2)


@click.command()
@click.option("--batch-sizes", default="8,32,128,1024", help="Mini-batches; the last one may be all samples.")
@click.option("--lr", default=0.1)
@click.option("--steps", default=8000)
@click.option("--every", default=400)
@click.option("--seeds", default=3)
@click.option("--picture", type=click.Path(path_type=Path), help="A PNG of the curves.")
def main(batch_sizes: str, lr: float, steps: int, every: int, seeds: int, picture: Path | None) -> None:
    """Train, measure, and tell the end of each figure as a share of 2/rate."""
    with tempfile.TemporaryDirectory() as folder:
        frames = [
            trained(Path(folder), batch_size=int(size), lr=lr, steps=steps, every=every, seed=seed)
            for size in batch_sizes.split(",")
            for seed in range(seeds)
        ]
    rows = pd.concat(frames, ignore_index=True)
    late = rows[rows["step"] >= 0.7 * steps]
    names = ("eigenvalue", "batch_sharpness", "directional_sharpness", "critical_sharpness")
    table = Table("batch", *(f"{name} × rate/2" for name in names))
    for number, own in late.groupby("batch"):
        cells = []
        for name in names:
            means = own[own["measure"].astype(str) == name].groupby("seed")["share"].mean().tolist()
            error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
            cells.append(f"{statistics.fmean(means):.3f} ± {error:.3f}" if means else "unknown")
        table.add_row(str(number), *cells)
    console = Console()
    console.print(table)
    console.print(f"means over updates {0.7 * steps:,.0f} to {steps:,} and {seeds} seeds, ± standard error over seeds")
    if picture is not None:
        draw(rows, picture)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """The curves of the top eigenvalue and batch sharpness, a panel a batch size."""
    import altair as alt

    words = {"eigenvalue": "top eigenvalue of the Hessian", "batch_sharpness": "batch sharpness"}
    shown = rows.assign(measure=rows["measure"].astype(str).map(words), seed=rows["seed"].astype(str))
    shown = shown.dropna(subset=["measure"])[["step", "share", "measure", "seed", "batch"]]
    shown = shown.assign(batch="mini-batches of " + shown["batch"].astype(str))
    lines = (
        alt.Chart()
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="update"),
            y=alt.Y("share:Q", title="times rate / 2"),
            color=alt.Color("measure:N", title=None, legend=alt.Legend(orient="bottom")),
            detail="seed:N",
        )
    )
    edge = alt.Chart().mark_rule(color="#888888", strokeDash=[6, 4]).encode(y=alt.datum(1.0))
    panels = alt.layer(lines, edge, data=shown).properties(width=190, height=170)
    order = [*dict.fromkeys(shown["batch"])]
    panels.facet(column=alt.Column("batch:N", sort=order, title=None)).save(str(path), scale_factor=1.5)


if __name__ == "__main__":
    main()
