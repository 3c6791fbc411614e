"""SGD's batch sharpness settles at 2/rate while the top eigenvalue lies below (arXiv:2412.20553): Fashion-MNIST, seeds.

    python -m benchmarks.batch_sharpness --picture docs/images/batch-sharpness.png

An MLP of two hidden layers with ReLU learns the labels of 4,000 images, halved in size, as numbers, by squared error;
SGD without momentum, mini-batches drawn without replacement. The initial weights are 0.4 of torch's, so that the loss
starts flat. Every twentieth of the training the top eigenvalue, batch sharpness at the run's own batch, critical and
directional sharpness are measured on all 4,000. The rate must be high for the task: with --lr 0.1
batch sharpness doesn't come near 2/rate in as many updates.
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
from torch import Tensor, nn

import tvlars_probe
from tvlars_probe.data.registry import DataConfig


def small_images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Images as numbers with mean 0 and variance 1, halved in size if large; labels as one of ten numbers 1."""
    train = DataConfig(name=name, limit=count).load().train
    images, labels = train.batch(torch.arange(len(train)))
    x = (nn.functional.avg_pool2d(images, 2) if images.shape[-1] > 16 else images).flatten(1)
    return (x - x.mean()) / x.std(), nn.functional.one_hot(labels, 10).float()


def flat_mlp(inputs: int, width: int = 128) -> nn.Sequential:
    """An MLP whose loss starts flat: its initial weights and biases are 0.4 of torch's."""
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4)
    return model


def squares(z: Tensor, y: Tensor) -> Tensor:
    """Half of the squared error, summed over the outputs."""
    return (z - y).square().sum(1).mean() / 2


def trained(
    folder: Path, data: tuple[Tensor, Tensor], *, batch_size: int, lr: float, steps: int, seed: int
) -> pd.DataFrame:
    """Train, and return the rows of ``curvature``."""
    torch.manual_seed(seed)
    x, y = data
    model = flat_mlp(x.shape[1])
    optimizer = torch.optim.SGD(model.parameters(), lr)
    probe = tvlars_probe.SharpnessProbe(
        model, squares, (x, y), every=max(steps // 20, 1), measures=("eigenvalue", "batch", "directional", "critical"),
        batch_size=batch_size, tol=0.02,
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
@click.option("--ds", default="fashion-mnist", help="Data set of ten classes of grey images.")
@click.option("--batch-sizes", default="16,64,256", help="Mini-batches.")
@click.option("--lr", default=0.6)
@click.option("--steps", default=20000)
@click.option("--samples", default=4000, help="Images.")
@click.option("--seeds", default=3)
@click.option("--picture", type=click.Path(path_type=Path), help="A PNG of the curves.")
def main(ds: str, batch_sizes: str, lr: float, steps: int, samples: int, seeds: int, picture: Path | None) -> None:
    """Train, measure, and tell the end of each figure as a share of 2/rate."""
    with tempfile.TemporaryDirectory() as folder:
        data = small_images(ds, samples)
        frames = [
            trained(Path(folder), data, batch_size=int(size), lr=lr, steps=steps, seed=seed)
            for size in batch_sizes.split(",")
            for seed in range(seeds)
        ]
    rows = pd.concat(frames, ignore_index=True)
    late = rows[rows["step"] >= 0.5 * steps]
    names = {"eigenvalue": "λ₁", "batch": "batch", "directional": "directional", "critical": "critical"}
    table = Table("mini-batch", *(f"{word} × rate/2" for word in names.values()))
    for number, own in late.groupby("batch"):
        cells = []
        for name in names:
            figures = own[own["measure"].astype(str).str.startswith(name)]
            means = figures.groupby("seed")["share"].mean().tolist()
            error = f" ± {statistics.stdev(means) / math.sqrt(len(means)):.3f}" if len(means) > 1 else ""
            cells.append(f"{statistics.fmean(means):.3f}{error}" if means else "unknown")
        table.add_row(str(number), *cells)
    console = Console()
    console.print(table)
    console.print(f"means over updates {0.5 * steps:,.0f} to {steps:,} and {seeds} seeds, ± standard error")
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
