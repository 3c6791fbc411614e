"""Products per measurement in training: from the last measurement's eigenvector, and from a random vector.

    python -m benchmarks.warm_starts

The digits, the small CNN, batch 512, a measurement every ten steps at tolerance 1e-3. Each state is measured three
times: warm; cold, to a residual within the tolerance, as a first measurement is; and cold, to an estimated error
within it, as a warm one ends. Every fifth measurement of a run starts cold anyway, and isn't counted. Products are
counted, not timed, so that other work on the machine makes no difference.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

from benchmarks.environment import environment
from tvlars_probe import LAMB, LARS, TVLARS, SharpnessProbe, open_run, record
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.probes.sharpness import COLD

FILTERS: dict[str, Any] = {"weight_decay_filter": True, "lars_adaptation_filter": True}

OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "lars, lr 1": lambda params: LARS(params, 1.0, **FILTERS),
    "lars, lr 8": lambda params: LARS(params, 8.0, **FILTERS),
    "tvlars, lr 8, lmbda 0.001": lambda params: TVLARS(params, 8.0, **FILTERS),
    "lamb, lr 0.01": lambda params: LAMB(params, 0.01, weight_decay=5e-4),
    "sgd, lr 0.02": lambda params: SGD(params, 0.02),
    "sgd, lr 0.1": lambda params: SGD(params, 0.1),
    "adam, lr 0.001": lambda params: Adam(params, 1e-3),
}


class ColdProbe(SharpnessProbe):
    """Forgets the last measurement."""

    def measure(self, *args: Any) -> dict[str, list[Any]]:
        self._vectors = {}
        return super().measure(*args)


class ColdProbeByValue(ColdProbe):
    """Ends as a warm start does."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._measures = replace(self._measures, criterion=self._measures.warm_criterion)


EVERY = 10

PROBES = SharpnessProbe, ColdProbe, ColdProbeByValue


def curvature(make: Callable[[Sequence[nn.Parameter]], Optimizer], steps: int, folder: Path) -> pd.DataFrame:
    """The table ``curvature`` of a run whose states are all measured by each of `PROBES`."""
    data = DataConfig(name="digits").load().train
    torch.manual_seed(0)
    model = ModelConfig(name="cnn").build(channels=1, num_classes=10)
    sample = data.batch(torch.arange(256))
    settings: dict[str, Any] = {"every": EVERY, "operators": ("hessian", "effective", "relative"), "tol": 1e-3}
    probes = [kind(model, cross_entropy, sample, **settings) for kind in PROBES]
    optimizer = make(list(model.parameters()))
    with record(model, optimizer, folder, detail="none", probes=probes) as rec:
        for step in range(steps):
            x, y = data.batch(torch.arange(len(data)).roll(512 * step)[:512])
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=len(x))
    return open_run(folder).curvature()


@click.command()
@click.option("--steps", default=180, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(steps: int, threads: int) -> None:
    """Print the median number of products, warm and cold, and how far the values, warm and cold, are apart."""
    torch.set_num_threads(threads)
    console = Console(highlight=False, width=120)
    console.print(environment())
    table = Table(box=None, pad_edge=False, title=f"products per measurement, median over {steps} steps")
    for column in (
        "optimizer",
        "operator",
        "warm",
        "cold",
        "ratio",
        "by value",
        "ratio",
        "median difference",
        "largest",
    ):
        table.add_column(column, justify="left" if column in ("optimizer", "operator") else "right")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, make) in enumerate(track(OPTIMIZERS.items(), console=Console(stderr=True))):
            rows = curvature(make, steps, Path(scratch) / str(number))
            is_warm = (rows["step"] > 10) & (rows["step"] % (EVERY * COLD) != 0)
            for operator, some in rows[is_warm].groupby("operator", observed=True):
                by_step = some.groupby("step")
                warm, cold, by_value = (by_step.nth(place) for place in range(len(PROBES)))
                apart = (warm["value"].to_numpy() / cold["value"].to_numpy() - 1).__abs__()
                products = [float(side["matvecs"].median()) for side in (warm, cold, by_value)]
                table.add_row(
                    name,
                    str(operator),
                    f"{products[0]:g}",
                    *(text for count in products[1:] for text in (f"{count:g}", f"{products[0] / count:.2f}")),
                    f"{pd.Series(apart).median():.1e}",
                    f"{apart.max():.1e}",
                )
    console.print(table)


if __name__ == "__main__":
    main()
