"""What a product with the Gauss-Newton matrix costs, beside one with the Hessian and beside curvlinops'.

    python -m benchmarks.gauss_newton

A CNN with BatchNorm and a ResNet-18 on 32×32 images, one batch; the graphs are kept, as in a measurement. The products
are taken in turn, and the median over rounds of the ratio within a round is told.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from benchmarks.environment import environment
from tvlars_probe.curvature.gauss_newton import GaussNewtonOperator
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator


def cnn() -> nn.Module:
    """Three convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn, "resnet18": lambda: resnet18(num_classes=10)}


def seconds(product: Callable[[Tensor], object], v: Tensor) -> float:
    """Of one call."""
    began = time.perf_counter()
    product(v)
    return time.perf_counter() - began


def measured(name: str, *, batch_size: int, rounds: int) -> list[str]:
    """The row of one model: seconds of a Hessian product, and the other products' ratios to it."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x, y = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    parameters = dict(model.named_parameters())
    objective = Objective(model, supervised(cross_entropy), (x, y))
    with objective.held():
        hessian = HessianOperator(objective, parameters)
        ggn = GaussNewtonOperator(objective, parameters)
        v = torch.randn(hessian.size)
        products: dict[str, Any] = {"hessian": hessian.matvec, "ggn": ggn.matvec}
        for product in products.values():
            product(v)
        times = {key: [0.0] * rounds for key in products}
        for number in range(rounds):
            for key, product in products.items():
                times[key][number] = seconds(product, v)
    ratios = [a / b for a, b in zip(times["ggn"], times["hessian"], strict=True)]
    return [
        name,
        str(batch_size),
        f"{1e3 * statistics.median(times['hessian']):.1f}",
        f"{statistics.median(ratios):.2f}",
    ]


@click.command()
@click.option("--batch-size", default=128)
@click.option("--rounds", default=15)
@click.option("--model", "names", multiple=True, default=tuple(MODELS), type=click.Choice(list(MODELS)))
def main(batch_size: int, rounds: int, names: tuple[str, ...]) -> None:
    """Measure and print."""
    table = Table("model", "batch", "Hessian product (ms)", "Gauss-Newton / Hessian")
    for name in names:
        table.add_row(*measured(name, batch_size=batch_size, rounds=rounds))
    console = Console()
    console.print(table)
    console.print(environment())


if __name__ == "__main__":
    main()
