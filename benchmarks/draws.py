"""How often the 95 % interval of a mean over draws holds the mean over samples of that size.

    python -m benchmarks.draws

A small tanh network in float64 is trained on the digits for some steps. Many random orders of the 1,437 training digits
are cut into ten disjoint samples of n, as ``sharpness --draws 10`` cuts one, and the sharpness of each is computed.
The mean of all these figures is the target: the mean over samples of n. Then intervals are made, each from K figures,
by the function that the commands tell them with:

- of independent draws: K figures chosen with replacement out of all of them, whose mean is the target exactly;
- of disjoint draws: the first K samples of each order. The digits are finite, and so such draws are told too wide an
  interval, the more so the more of the digits they take.

Each figure's own error is far below its distance from the others, and no part of what is tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy

import tvlars_probe
from benchmarks.figures import RESULTS, Figure, save
from tvlars_probe.analyses.draws import over_draws
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.runners.phases.probe_sample import ProbeSample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.data.images import TensorImages

    Floats = NDArray[np.float64]

MOST_DRAWS = 10

DRAWS = (2, 3, 5, MOST_DRAWS)


def trained(images: TensorImages, steps: int) -> nn.Module:
    """A network of 1,210 parameters after ``steps`` of gradient descent at lr 0.5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    x, y = images.batch(torch.arange(len(images)), torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def sharpness_of_samples(model: nn.Module, images: TensorImages, size: int, orders: int) -> Floats:
    """The top eigenvalue on each disjoint sample of each order, (orders, `MOST_DRAWS`)."""
    found = np.empty((orders, MOST_DRAWS))
    for seed in track(range(orders), f"samples of {size}", console=Console(stderr=True)):
        for place, sample in enumerate(ProbeSample.draws(images, size, MOST_DRAWS, seed)):
            batch = images.batch(torch.tensor(sample.indices), torch.float64)
            found[seed, place] = tvlars_probe.sharpness(model, cross_entropy, batch, tol=1e-6).top
    return found


def coverage(drawn: Floats, target: float) -> float:
    """The share, in percent, of told intervals that hold the target.

    Args:
        drawn: the figures of a measurement in each row.
        target: the mean over samples of that size.
    """
    repetitions, draws = drawn.shape
    rows = pd.DataFrame(
        {
            "measurement_id": np.repeat(np.arange(repetitions), draws),
            "draw": np.tile(np.arange(draws), repetitions),
            "value": drawn.ravel(),
            "error": 0.0,
            "converged": True,
        }
    )
    told = over_draws(rows)
    return 100 * float(told["low"].le(target).mul(told["high"].ge(target)).mean())


def figures_of(values: Floats, size: int, there: int, repetitions: int) -> list[Figure]:
    """Coverage by number of draws, of independent and of disjoint ones.

    Args:
        values: the sharpness of each sample, an order in each row.
        size: of a sample.
        there: size of the data.
        repetitions: number of intervals from independent draws.
    """
    target, rng, found = float(values.mean()), np.random.default_rng(0), []
    spread = f"{target:.4g}, one draw ± {values.std():.2g} ({100 * values.std() / target:.1f} %)"
    for draws in DRAWS:
        independent = coverage(rng.choice(values.ravel(), (repetitions, draws)), target)
        disjoint, share = coverage(values[:, :draws], target), draws * size / there
        too_wide = np.sqrt(values[:, :draws].var(axis=1, ddof=1).mean() / draws) / values[:, :draws].mean(axis=1).std()
        note = f"disjoint, {100 * share:.0f} % of the data: {disjoint:.1f} %, {too_wide:.2f} times as wide as needed"
        note += f" (1/√(1 − share) is {1 / np.sqrt(1 - share):.2f}); mean {spread}"
        off = abs(independent - 95)
        what = f"coverage of the 95 % interval, {draws} draws of {size}: {independent:.1f} %, off by"
        found.append(Figure(what=what, value=off, aim=3, unit="points", note=note))
    return found


@click.command()
@click.option("--size", "sizes", type=int, multiple=True, default=(16, 128), show_default=True)
@click.option("--orders", default=1000, show_default=True, help="Random orders of the data.")
@click.option("--repetitions", default=4000, show_default=True, help="Intervals from independent draws.")
@click.option("--steps", default=100, show_default=True, help="Of training.")
def main(sizes: tuple[int, ...], orders: int, repetitions: int, steps: int) -> None:
    """Print the coverage for each size of sample and number of draws."""
    torch.set_num_threads(1)
    images = DataConfig(name="digits").load().train
    model, found = trained(images, steps), []
    x, y = images.batch(torch.arange(len(images)), torch.float64)
    everything = tvlars_probe.sharpness(model, cross_entropy, (x, y), tol=1e-6).top
    for size in sizes:
        values = sharpness_of_samples(model, images, size, orders)
        found += figures_of(values, size, len(images), repetitions)
    save("draws", found)
    print(f"sharpness on all {len(images):,} digits: {everything:.4g}; figures in {RESULTS / 'draws.json'}")


if __name__ == "__main__":
    main()
