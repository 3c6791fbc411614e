"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017, SIAM J. Matrix Anal. 38:1075).

A unit vector v = Σ c_i u_i sees the spectral measure Σ c_i² δ(λ − λ_i), with the eigenvectors u_i of A. For random v
its average is the spectral density. m Lanczos steps from v give the m-node Gauss quadrature of this measure. Its nodes
are the eigenvalues of the tridiagonal matrix, its weights the squared first components of their eigenvectors. If this
would take as many products as the operator has dimensions, or more, the matrix itself is computed and the density is
exact.

The error has two parts. One is the draw of the vectors. For vectors of random direction in n dimensions the smoothed
density Σ c_i² f_i, with f_i the Gaussian around λ_i, has the variance 2/(n + 2) · (Σ f_i²/n − (Σ f_i/n)²), and its
distribution is close to a gamma distribution. Σ f_i²/n is itself a smoothed density, so the quadratures give it. Unlike
the spread over a few vectors it is known well, even with one. The other part is the quadrature's: m nodes don't resolve
Gaussians that are narrower than the nodes' distances. It is estimated by the change from three quarters of the nodes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import gammaincinv

from tvlars_probe.curvature.krylov import NOT_FINITE, Recurrence, is_symmetric
from tvlars_probe.curvature.operators import asymmetry_of, dense
from tvlars_probe.curvature.results import Density
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tvlars_probe.curvature.operators import Operator

    Floats = NDArray[np.float64]


NARROWEST = 0.002
"""The narrowest default smoothing, as a share of the spectrum's width."""

WIDENINGS = np.sqrt(2.0) ** np.arange(16)
"""Multiples of the narrowest smoothing that are tried, up to 36 % of the spectrum's width."""

RESOLVED = 0.5
"""A smoothing is wide enough if the quadrature's error is at most this share of the random vectors' error."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A quadrature of the spectral measure that one vector sees: its nodes and weights, and those of a shorter one."""

    nodes: Floats
    weights: Floats
    fewer_nodes: Floats
    fewer_weights: Floats


def spectral_density(
    operator: Operator,
    *,
    probes: int | None = None,
    steps: int = 40,
    points: int = 1001,
    sigma: float | None = None,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Density:
    """Estimate the density of a symmetric operator's eigenvalues; up to n = probes·steps it is exact.

    Args:
        operator: A, of size n.
        probes: number of random vectors. By default 4 to 20: fewer for larger operators, because a random vector of
            more dimensions is closer to the average.
        steps: Lanczos steps from each random vector, which is the number of nodes of its quadrature.
        points: number of points of the grid.
        sigma: standard deviation of the Gaussians that smooth the density, in units of λ. By default it is the
            narrowest, from 0.2 % of the spectrum's width on, that the quadratures resolve. Between the nodes of a
            quadrature, the interval of a narrower one leaves out a part of its error.
        seed: of the random vectors.
        report: called with the number of products made and the number to make.

    Raises:
        UserError: no probes or no steps.
        NonFiniteLossError: a product isn't finite.
    """
    probes = int(np.clip(2000 / operator.size, 4, 20)) if probes is None else probes
    if probes < 1 or steps < 1:
        raise UserError(f"probes={probes}, steps={steps}: a density needs at least one of each")
    began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    steps = min(steps, operator.size)
    if operator.size <= probes * steps:
        probes = 0
        rule, asymmetry = _exact(operator, partial(_tell, report, 0, operator.size))
        rules = [rule]
    else:
        progress = [partial(_tell, report, probe * steps, probes * steps) for probe in range(probes)]
        pairs = [_quadrature(operator, generator, steps, told) for told in progress]
        rules, asymmetry = [rule for rule, _ in pairs], max(found for _, found in pairs)
    estimate = _Estimate.of(rules, probes=probes, size=operator.size, points=points, sigma=sigma)
    nodes = np.concatenate([rule.nodes for rule in rules])
    weights = np.concatenate([rule.weights for rule in rules]) / len(rules)
    order, scale = np.argsort(nodes), float(np.abs(nodes).max())
    return Density(
        nodes=nodes[order], weights=weights[order], grid=estimate.grid, density=estimate.density,
        standard_error=np.hypot(estimate.spread, estimate.bias), low=estimate.interval[0], high=estimate.interval[1],
        sigma=estimate.sigma, matvecs=len(nodes), probes=probes, seconds=time.perf_counter() - began,
        symmetric=is_symmetric(asymmetry, scale, operator.dtype), asymmetry=asymmetry / scale if scale else 0.0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A smoothed density on a grid, with the standard error by the random vectors and the quadrature's error."""

    grid: Floats
    density: Floats
    spread: Floats
    bias: Floats
    sigma: float

    @classmethod
    def of(cls, rules: list[_Rule], *, probes: int, size: int, points: int, sigma: float | None) -> _Estimate:
        """Smooth by ``sigma``, or by the narrowest Gaussian that the quadratures resolve."""
        nodes = np.concatenate([rule.nodes for rule in rules])
        # A spectrum of a single value has no width: the size of the value stands for it, or 1 if that is smaller.
        width = float(np.ptp(nodes)) or max(float(np.abs(nodes).max()), 1.0)
        for tried in NARROWEST * width * WIDENINGS if sigma is None else [sigma]:
            found = cls._smoothed(rules, float(tried), probes=probes, size=size, points=points)
            if found.bias.sum() <= RESOLVED * found.spread.sum():
                break
        return found

    @classmethod
    def _smoothed(cls, rules: list[_Rule], sigma: float, *, probes: int, size: int, points: int) -> _Estimate:
        outer = [node for rule in rules for node in (rule.nodes.min(), rule.nodes.max())]
        # Five standard deviations beyond the outer nodes hold all of a Gaussian but 3e-7.
        grid = np.linspace(min(outer) - 5 * sigma, max(outer) + 5 * sigma, points)
        density = np.mean([_spread(grid, rule.nodes, rule.weights, sigma) for rule in rules], axis=0)
        if not probes:
            return cls(grid, density, np.zeros(points), np.zeros(points), sigma)
        fewer = np.mean([_spread(grid, rule.fewer_nodes, rule.fewer_weights, sigma) for rule in rules], axis=0)
        # The square of a Gaussian is a Gaussian of 1/√2 of its width, divided by 2σ√π.
        squares = np.mean([_spread(grid, rule.nodes, rule.weights, sigma / np.sqrt(2)) for rule in rules], axis=0)
        squares /= 2 * sigma * np.sqrt(np.pi)
        variance = 2 / (size + 2) * np.maximum(squares - density**2, 0.0) / probes
        return cls(grid, density, np.sqrt(variance), np.abs(density - fewer), sigma)

    @property
    def interval(self) -> tuple[Floats, Floats]:
        """Both ends of the 95 % interval of the density."""
        # estimate/density follows a gamma distribution of mean 1: its quantiles divide the estimate.
        random = self.spread > 0
        shape = np.divide(self.density, self.spread, out=np.ones_like(self.density), where=random) ** 2
        low, high = self.density.copy(), self.density.copy()
        with np.errstate(over="ignore", divide="ignore"):  # at a tiny shape the lower quantile is zero
            low[random] /= gammaincinv(shape[random], 0.975) / shape[random]
            high[random] /= gammaincinv(shape[random], 0.025) / shape[random]
        # No density is higher than that of a single value.
        most = 1 / (self.sigma * np.sqrt(2 * np.pi))
        return np.maximum(low - self.bias, 0.0), np.minimum(high + self.bias, most)


def _exact(operator: Operator, report: Callable[[int], None]) -> tuple[_Rule, float]:
    """All eigenvalues, each with weight 1/n, and the asymmetry."""
    matrix = dense(operator, report)
    if not torch.isfinite(matrix).all():
        raise NonFiniteLossError(NOT_FINITE)
    # Rounding leaves it slightly asymmetric, and eigvalsh would read one triangle only.
    nodes = torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()
    weights = np.full(operator.size, 1 / operator.size)
    return _Rule(nodes, weights, nodes, weights), asymmetry_of(matrix)


def _quadrature(
    operator: Operator, generator: torch.Generator, steps: int, report: Callable[[int], None]
) -> tuple[_Rule, float]:
    """Nodes and weights of the measure that one random vector sees, and the asymmetry of its products."""
    recurrence = Recurrence(operator)
    recurrence.start_at_random(generator)
    diagonal: list[float] = []
    off: list[float] = []
    ended = False
    for k in range(steps):
        # Of column k only the diagonal is needed: the rest of it is β, which is known, and rounding.
        diagonal.append(float(recurrence.step()[-1]))
        report(k + 1)
        # Within a factor of two the norm of the tridiagonal matrix, which stands for that of A.
        scale = max(abs(a) for a in diagonal) + max(off, default=0.0)
        ended = recurrence.ends(scale)
        if k + 1 == steps or ended:
            break
        off.append(recurrence.beta)
        recurrence.go_on()
    nodes, weights = _gauss(diagonal, off)
    # A quadrature that came to its end is exact, and so is the shorter one that stands for its error.
    fewer = len(diagonal) if ended else max(3 * len(diagonal) // 4, 1)
    return _Rule(nodes, weights, *_gauss(diagonal[:fewer], off[: fewer - 1])), recurrence.asymmetry


def _gauss(diagonal: list[float], off: list[float]) -> tuple[Floats, Floats]:
    """Golub and Welsch: the Gauss rule from the eigenvectors of the tridiagonal matrix."""
    tridiagonal = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    nodes, vectors = (each.numpy() for each in torch.linalg.eigh(torch.from_numpy(tridiagonal)))
    return nodes, vectors[0] ** 2


def _tell(report: Callable[[int, int], None], before: int, total: int, made: int) -> None:
    report(before + made, total)


def _spread(grid: Floats, nodes: Floats, weights: Floats, sigma: float) -> Floats:
    """The sum of Gaussians around the nodes, on the grid."""
    exponent = -0.5 * ((grid[:, None] - nodes[None, :]) / sigma) ** 2
    density: Floats = (np.exp(exponent) * weights).sum(axis=1) / (sigma * np.sqrt(2 * np.pi))
    return density
