"""How often a figure that is called converged is further off than told: planted spectra, and the probes of ten runs.

    python -m benchmarks.planted

The planted operators are diagonal, so that their eigenvalues are known. Four kinds of spectrum (like a network's, a
cluster at the top, a dominant negative end, a bulk with one outlier) meet four kinds of start (random; an eigenvector
after a drift; one that another eigenvalue has overtaken; one nearly orthogonal to the top), sizes from 30 to 30,000,
float32 and float64. Products are counted, not timed. Then ten runs on the digits are measured every ten steps, as in
training, and each figure is compared with one in float64 to a tolerance of 1e-8. Last the intervals: of traces and of
densities, over planted spectra.
"""

from __future__ import annotations

import collections
import copy
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from rich.progress import track
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from benchmarks.figures import Figure, save
from tvlars_probe import LAMB, LARS, TVLARS, sharpness
from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import DenseOperator, DiagonalOperator
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.models.backbones import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.optim import Optimizer

Floats = np.ndarray[Any, np.dtype[np.float64]]

SIZES = (30, 100, 300, 1000, 5000, 30_000)

STARTS = ("random", "drifted", "overtaken", "unlucky")


def network_like(rng: np.random.Generator, size: int) -> Floats:
    """A narrow bulk, one-sided or not, and up to 14 outliers over two and a half decades."""
    values = rng.standard_normal(size) * 10 ** rng.uniform(-4, -1)
    if rng.random() < 0.5:
        values = np.abs(values) ** rng.uniform(1, 3) * 10 ** rng.uniform(-2, 0)
    outliers = rng.integers(1, 15)
    values[:outliers] = 10 ** rng.uniform(-1.5, 1, outliers)
    return values


def cluster(rng: np.random.Generator, size: int) -> Floats:
    """A continuum, and up to nine eigenvalues above it whose distances span seven decades."""
    values, many = rng.uniform(-0.5, 0.5, size), rng.integers(2, 10)
    values[:many] = 1 - 10 ** rng.uniform(-7, -0.5) * rng.random(many)
    return values * 10 ** rng.uniform(-4, 4)


def negative_end(rng: np.random.Generator, size: int) -> Floats:
    """A negative eigenvalue, up to ten thousand times the top one."""
    values = network_like(rng, size)
    values[-1] = -(10 ** rng.uniform(0, 4)) * np.abs(values).max()
    return values


def outlier(rng: np.random.Generator, size: int) -> Floats:
    """A bulk of any width, and one eigenvalue a thousandth to ten times above it."""
    width = 10 ** rng.uniform(-6, 0)
    values = [np.ones(size), 1 - width * rng.random(size), 1 + width * rng.standard_normal(size)][rng.integers(3)]
    values[0] = values.max() * (1 + 10 ** rng.uniform(-3, 1))
    return values * 10 ** rng.uniform(-3, 3)


SPECTRA = {
    "like a network's": network_like,
    "a cluster at the top": cluster,
    "a dominant negative end": negative_end,
    "a bulk with one outlier": outlier,
}


def start_of(kind: str, rng: np.random.Generator, values: Floats) -> Tensor | None:
    """A vector to start from; None lets Lanczos draw one."""
    if kind == "random":
        return None
    order, v = np.argsort(values)[::-1], np.zeros(len(values))
    noise = rng.standard_normal(len(values)) / np.sqrt(len(values))
    if kind == "drifted":
        v[order[0]] = 1
        v += 10 ** rng.uniform(-4, -0.5) * noise
    elif kind == "overtaken":
        v[order[rng.integers(1, 6)]] = 1
        v += 10 ** rng.uniform(-8, -1) * noise
        v[order[0]] *= 10 ** rng.uniform(-4, 0)
    else:
        v[order[rng.integers(1, len(values))]] = 1
        v[order[-1]] += 10 ** rng.uniform(-8, 0)
        v[order[0]] = 10 ** rng.uniform(-12, -3)
    return torch.from_numpy(v)


def planted(cases: int, seed: int) -> list[Figure]:
    """Run the planted cases."""
    rng, counts = np.random.default_rng(seed), collections.Counter[tuple[str, str]]()
    products = collections.defaultdict[str, list[int]](list)
    for case in track(range(cases), description="planted spectra"):
        kind, start = [*SPECTRA][case % 4], STARTS[case // 4 % 4]
        values = SPECTRA[kind](rng, int(rng.choice(SIZES)))
        dtype = torch.float64 if rng.random() < 0.7 else torch.float32
        typed = torch.from_numpy(values).to(dtype)
        given = start_of(start, rng, values)
        found = lanczos(
            DiagonalOperator(typed),
            start=None if given is None else given.to(dtype),
            criterion="residual" if given is None else "kato-temple",
            seed=int(rng.integers(1 << 30)),
            max_matvecs=400,
        )
        products[start].append(found.matvecs)
        # Rounding of the products is no part of what is told here.
        rounding = 10 * torch.finfo(dtype).eps * np.abs(values).max()
        wrong = found.converged and abs(found.top - typed.max().item()) > found[1].error + rounding
        counts.update([(start, "cases")] + [(start, "converged")] * found.converged + [(start, "wrong")] * bool(wrong))
    figures = []
    for start in STARTS:
        wrong, converged = counts[start, "wrong"], counts[start, "converged"]
        note = f"{wrong} of {converged} converged, of {counts[start, 'cases']} cases"
        note += f"; products, mean {np.mean(products[start]):.1f}, median {np.median(products[start]):g}"
        what = f"planted spectra, start {start}: called converged and further off than told"
        figures.append(Figure(what=what, value=1000 * wrong / max(converged, 1), aim=1, unit="of 1,000", note=note))
    return figures


FILTERS: dict[str, Any] = {"weight_decay_filter": True, "lars_adaptation_filter": True}

RUNS: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "lars, lr 1": lambda params: LARS(params, 1.0, **FILTERS),
    "lars, lr 8": lambda params: LARS(params, 8.0, **FILTERS),
    "tvlars, lr 8": lambda params: TVLARS(params, 8.0, **FILTERS),
    "lamb, lr 0.01": lambda params: LAMB(params, 0.01, weight_decay=5e-4),
    "lamb, lr 0.03": lambda params: LAMB(params, 0.03, weight_decay=5e-4),
    "sgd, lr 0.02": lambda params: SGD(params, 0.02),
    "sgd, lr 0.1": lambda params: SGD(params, 0.1),
    "sgd, lr 0.3, momentum 0.9": lambda params: SGD(params, 0.3, momentum=0.9),
    "adam, lr 0.001": lambda params: Adam(params, 1e-3),
    "adam, lr 0.01": lambda params: Adam(params, 1e-2),
}


def states(make: Callable[[Sequence[nn.Parameter]], Optimizer], steps: int) -> Iterator[nn.Module]:
    """A run on the digits, and its model before every tenth step."""
    data = DataConfig(name="digits").load().train
    torch.manual_seed(0)
    model = ModelConfig(name="cnn").build(channels=1, num_classes=10)
    optimizer = make(list(model.parameters()))
    for step in range(steps):
        if step % 10 == 0:
            yield model
        x, y = data.batch(torch.arange(len(data)).roll(512 * step)[:512])
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def of_runs(steps: int, names: Sequence[str]) -> list[Figure]:
    """Measure the runs of these names as in training, and in float64."""
    x, y = DataConfig(name="digits").load().train.batch(torch.arange(256))
    figures = []
    for name in track(names, description="runs"):
        make = RUNS[name]
        wrong, converged, products = 0, 0, []
        for model in states(make, steps):
            [one] = sharpness(model, cross_entropy, (x, y), bn_mode="train").measurements
            wide = copy.deepcopy(model).double()
            exact = sharpness(wide, cross_entropy, (x.double(), y), bn_mode="train", tol=1e-8).top
            converged += bool(one.converged)
            wrong += bool(one.converged) and abs(one.value - exact) > (one.error or 0.0)
            products.append(one.matvecs or 0)
        note = f"{wrong} of {converged} converged, of {len(products)} states; products, median {np.median(products):g}"
        what = f"{name}: called converged and further off from float64 than told"
        figures.append(Figure(what=what, value=1000 * wrong / max(converged, 1), aim=1, unit="of 1,000", note=note))
    return figures


def rotated(rng: np.random.Generator, size: int) -> tuple[Tensor, Floats]:
    """A dense matrix with the spectrum of a network, and its eigenvalues."""
    values = network_like(rng, size)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return torch.from_numpy((q * values) @ q.T), values


def of_intervals(spectra: int) -> list[Figure]:
    """Coverage of the 95 % intervals of traces and densities."""
    inside = collections.defaultdict[str, list[float]](list)
    rng = np.random.default_rng(0)
    for seed in track(range(spectra), description="intervals"):
        matrix, values = rotated(rng, 400)
        operator = DenseOperator(matrix)
        for num_matvecs in (6, 20, 100):
            found = [hutchpp(operator, num_matvecs=num_matvecs, seed=1000 * seed + again) for again in range(25)]
            held = [one.low <= values.sum() <= one.high for one in found]
            inside[f"trace, {num_matvecs} products"].append(float(np.mean(held)))
        for probes in (4, 9):
            told = spectral_density(operator, probes=probes, steps=40, points=300, seed=seed)
            exact = stats.norm.pdf(told.grid[:, None], values, told.sigma).mean(axis=1)
            seen = exact > 1e-3 * exact.max()
            # Neighbouring points err together: a spectrum counts once.
            inside[f"density, {probes} vectors"].append(((told.low <= exact) & (exact <= told.high))[seen].mean())
    return [
        Figure(
            what=f"{name}: coverage of the 95 % interval is off by", value=abs(100 * float(np.mean(shares)) - 95),
            aim=2 if name.startswith("trace") else 3, unit="points",
            note=f"{100 * np.mean(shares):.1f} ± {100 * np.std(shares, ddof=1) / len(shares) ** 0.5:.1f} %",
        )
        for name, shares in inside.items()
    ]  # fmt: skip


@click.command()
@click.option("--cases", default=6400, show_default=True, help="Planted cases.")
@click.option("--steps", default=200, show_default=True, help="Of each run.")
@click.option("--run", "runs", type=click.Choice(list(RUNS)), multiple=True, default=[*RUNS], show_default="all ten")
@click.option("--spectra", default=60, show_default=True, help="For the intervals.")
@click.option("--seed", default=0, show_default=True, help="Of the planted cases.")
def main(cases: int, steps: int, runs: tuple[str, ...], spectra: int, seed: int) -> None:
    """Print the figures, and keep them in benchmarks/results."""
    torch.set_num_threads(1)
    save("planted", [*planted(cases, seed), *of_runs(steps, runs), *of_intervals(spectra)])


if __name__ == "__main__":
    main()
