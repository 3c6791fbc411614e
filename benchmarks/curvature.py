"""Top eigenvalues of a trained ResNet-18's Hessian: ours, PyHessian, hessian-eigenthings, and curvlinops with SciPy.

    python -m benchmarks.curvature

One process, one model, one batch, one after another, the whole sequence several times. Errors are against our Lanczos
in float64 at tolerance 1e-10, which the tests check against dense matrices. Peers run at their own tolerance of 1e-3
(what each of them means by it differs: PyHessian stops when an estimate changes by less than that).
"""

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from benchmarks.environment import environment
from benchmarks.figures import Figure, interleaved, save
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator

Found = tuple[list[float], int]  # eigenvalues from the top, products


def trained_model(steps: int = 30) -> nn.Module:
    """A ResNet-18 that has begun to learn a task of coloured noise."""
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        images, labels = batch(128)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    return model


def batch(size: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Noise around a pattern per class."""
    generator = torch.Generator().manual_seed(torch.randint(1 << 30, ()).item() if seed is None else seed)  # type: ignore[arg-type]
    patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(10, (size,), generator=generator)
    return patterns[labels] + 2 * torch.randn(size, 3, 32, 32, generator=generator), labels


def ours(model: nn.Module, images: Tensor, labels: Tensor, top: int, tol: float = 1e-3) -> Found:
    """tvlars-probe, to a residual of 1e-3."""
    objective = Objective(model, supervised(cross_entropy), [(images, labels)])
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        found = lanczos(hessian, top=top, tol=tol)
    return [value.value for value in found.values], found.matvecs


def ours_by_value(model: nn.Module, images: Tensor, labels: Tensor, top: int) -> Found:
    """tvlars-probe, to an estimated error of the value of 1e-3, as the probe in training does it."""
    objective = Objective(model, supervised(cross_entropy), [(images, labels)])
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        found = lanczos(hessian, top=top, tol=1e-3, criterion="kato-temple")
    return [value.value for value in found.values], found.matvecs


def by_pyhessian(model: nn.Module, images: Tensor, labels: Tensor, top: int) -> Found:
    """PyHessian, one batch, its graph kept."""
    peer: Any = import_module("pyhessian.hessian")  # the package has a class of the same name

    products, inner = 0, peer.hessian_vector_product

    def counted(*args: Any) -> Any:
        nonlocal products
        products += 1
        return inner(*args)

    peer.hessian_vector_product = counted
    torch.manual_seed(0)
    try:
        computer = peer.hessian(model, cross_entropy, data=(images, labels), cuda=False)
        values, _ = computer.eigenvalues(top_n=top)
    finally:
        peer.hessian_vector_product = inner
        model.zero_grad(set_to_none=True)
    return [float(value) for value in values], products


class _Counted:
    """Counts an operator's products."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.products, self._matvec = inner, 0, inner.matvec

    def __call__(self, v: Any) -> Any:
        self.products += 1
        return self._matvec(v)


def by_eigenthings(model: nn.Module, images: Tensor, labels: Tensor, top: int) -> Found:
    """hessian-eigenthings."""
    from hessian_eigenthings import HessianOperator as Peer
    from hessian_eigenthings import lanczos as peer_lanczos

    operator = Peer(model, [(images, labels)], lambda m, b: cross_entropy(m(b[0]), b[1]))
    operator.matvec = counted = _Counted(operator)
    # Its default number of iterations (twice as many as eigenvalues) ends 50 % off; this many is what it needs.
    found = peer_lanczos(operator, k=top, tol=1e-3, max_iter=10 if top == 1 else 30, which="LA", seed=0)
    return sorted((float(value) for value in found.eigenvalues), reverse=True), counted.products


def by_curvlinops(model: nn.Module, images: Tensor, labels: Tensor, top: int) -> Found:
    """curvlinops' operator, eigsh of SciPy."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    params = [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, [(images, labels)], check_deterministic=False
    ).to_scipy()
    counted = _Counted(operator)
    wrapped = LinearOperator(operator.shape, matvec=counted, dtype=np.float32)
    values = eigsh(wrapped, k=top, which="LA", tol=1e-3, return_eigenvectors=False)
    return sorted((float(value) for value in values), reverse=True), counted.products


PEERS: dict[str, Callable[[nn.Module, Tensor, Tensor, int], Found]] = {
    "tvlars-probe": ours,
    "tvlars-probe, by value": ours_by_value,
    "PyHessian": by_pyhessian,
    "hessian-eigenthings": by_eigenthings,
    "curvlinops + eigsh": by_curvlinops,
}


def product_in_gradients(model: nn.Module, size: int = 256, rounds: int = 7) -> float:
    """Time of a product over that of a gradient, median of interleaved rounds."""
    images, labels = batch(size, seed=2)
    params = list(model.parameters())
    objective = Objective(model, supervised(cross_entropy), [(images, labels)])
    ratios = []
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        v = torch.randn(hessian.size)
        for _ in range(rounds + 1):
            start = time.perf_counter()
            torch.autograd.grad(objective.term(0), params)
            middle = time.perf_counter()
            hessian.matvec(v)
            ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios[1:])


@click.command()
@click.option("--batch-size", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(batch_size: int, rounds: int) -> None:
    """Print time, products and error for top 1 and top 5."""
    warnings.filterwarnings("ignore")
    model, (images, labels) = trained_model(), batch(batch_size, seed=1)
    exact = exactly(model, images, labels)
    console = Console(highlight=False)
    console.print(environment())
    console.print(
        f"ResNet-18, {batch_size} images of 32x32; top eigenvalues in float64: {exact[0]:.6g} ... {exact[4]:.6g}"
    )
    times: dict[tuple[int, str], list[float]] = {}
    results: dict[tuple[int, str], Found] = {}
    for top in (1, 5):
        seconds = interleaved(
            {name: partial(_keep, results, top, name, model, images, labels) for name in PEERS}, rounds, 0
        )
        times |= {(top, name): some for name, some in seconds.items()}
    for top in (1, 5):
        console.print(comparison(top, times, results, exact))
    save("curvature", figures(times, results, exact, product_in_gradients(model)))


def _keep(
    results: dict[tuple[int, str], Found], top: int, name: str, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    results[top, name] = PEERS[name](model, images, labels, top)


def largest_error(found: Found, exact: list[float]) -> float:
    """Largest relative error of the eigenvalues."""
    return max(abs(value / right - 1) for value, right in zip(found[0], exact, strict=False))


def comparison(
    top: int, times: dict[tuple[int, str], list[float]], results: dict[tuple[int, str], Found], exact: list[float]
) -> Table:
    """Time, products and error of every program."""
    table = Table(title=f"top {top}, median of {len(times[top, 'tvlars-probe'])}")
    for column in ("", "seconds", "over ours", "products", "largest relative error"):
        table.add_column(column, justify="right" if column else "left")
    mine = statistics.median(times[top, "tvlars-probe"])
    for name in PEERS:
        seconds = statistics.median(times[top, name])
        error = largest_error(results[top, name], exact)
        table.add_row(name, f"{seconds:.1f}", f"{seconds / mine:.2f}", str(results[top, name][1]), f"{error:.1e}")
    return table


def figures(
    times: dict[tuple[int, str], list[float]],
    results: dict[tuple[int, str], Found],
    exact: list[float],
    product: float,
) -> list[Figure]:
    """The rows of the table of aims."""

    def ratio(top: int, peer: str) -> float:
        """A peer's time over ours, paired."""
        pairs = zip(times[top, peer], times[top, "tvlars-probe"], strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)

    others = [name for name in PEERS if name not in ("tvlars-probe", "tvlars-probe, by value", "PyHessian")]
    best = min(others, key=lambda name: ratio(5, name))
    error = largest_error(results[1, "tvlars-probe"], exact) / largest_error(results[1, "PyHessian"], exact)
    products = f"{results[5, 'tvlars-probe'][1]} products"
    return [
        Figure(
            what="top 5 at residual 1e-3: PyHessian's time over ours",
            value=ratio(5, "PyHessian"),
            aim=2.5,
            sense="at least",
            note=f"{products} to {results[5, 'PyHessian'][1]}",
            floor="PyHessian's number of products depends on its random start",
        ),
        Figure(
            what="top 5: the best other's time over ours",
            value=ratio(5, best),
            aim=1.5,
            sense="at least",
            note=f"{best}; {products} to {results[5, best][1]}",
            floor="both spend their time in nearly as many products",
        ),
        Figure(
            what="top 1: our time over PyHessian's",
            value=1 / ratio(1, "PyHessian"),
            aim=1.0,
            note=f"{results[1, 'tvlars-probe'][1]} products to {results[1, 'PyHessian'][1]}",
            floor="as many products as PyHessian, which stops earlier at a larger error",
        ),
        Figure(what="top 1: our error over PyHessian's", value=error, aim=0.2),
        Figure(
            what="one product in gradients, batch 256",
            value=product,
            aim=2.2,
            floor="a second backward through a kept graph is two backwards' work (theory: 2)",
        ),
    ]


def exactly(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The top five in float64."""
    model.double()
    try:
        return ours(model, images.double(), labels, 5, tol=1e-8)[0]
    finally:
        model.float()


if __name__ == "__main__":
    main()
