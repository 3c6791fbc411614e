"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017, SIAM J. Matrix Anal. 38:1075).

A unit vector v = Σ c_i u_i sees the spectral measure Σ c_i² δ(λ − λ_i), with the eigenvectors u_i of A. For random v
its average is the spectral density. m Lanczos steps from v give the m-node Gauss quadrature of this measure. Its nodes
are the eigenvalues of the tridiagonal matrix, its weights the squared first components of their eigenvectors. If this
would take as many products as the operator has dimensions, or more, the matrix itself is computed and the density is
exact.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.curvature.krylov import NOT_FINITE, Recurrence
from tvlars_probe.curvature.operators import dense
from tvlars_probe.curvature.results import Density
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tvlars_probe.curvature.operators import Operator

    Floats = NDArray[np.float64]


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
        probes: number of random vectors; the standard error comes from their spread. By default 4 to 20: fewer for
            larger operators, because a random vector of more dimensions is closer to the average.
        steps: Lanczos steps from each random vector, which is the number of nodes of its quadrature.
        points: number of points of the grid.
        sigma: standard deviation of the Gaussians that smooth the density, in units of λ; by default 0.2 % of the
            spectrum's width.
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
        probes, rules = 0, [_exact(operator, partial(_tell, report, 0, operator.size))]
    else:
        progress = [partial(_tell, report, probe * steps, probes * steps) for probe in range(probes)]
        rules = [_quadrature(operator, generator, steps, told) for told in progress]
    nodes = np.concatenate([n for n, _ in rules])
    weights = np.concatenate([w for _, w in rules]) / len(rules)
    # A spectrum of a single value has no width: the size of the value stands for it, or 1 if that is smaller.
    width = float(np.ptp(nodes)) or max(float(np.abs(nodes).max()), 1.0)
    spread = 0.002 * width if sigma is None else sigma
    # Five standard deviations beyond the outer nodes hold all of a Gaussian but 3e-7.
    grid = np.linspace(nodes.min() - 5 * spread, nodes.max() + 5 * spread, points)
    each = np.stack([_smoothed(grid, n, w, spread) for n, w in rules])
    # probes is 0 if the density is exact, and so is its error; the spread of a single probe isn't known.
    error = each.std(axis=0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(points, np.nan if probes else 0.0)
    order = np.argsort(nodes)
    return Density(
        nodes=nodes[order], weights=weights[order], grid=grid, density=each.mean(axis=0), standard_error=error,
        sigma=spread, matvecs=sum(len(n) for n, _ in rules), probes=probes, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _exact(operator: Operator, report: Callable[[int], None]) -> tuple[Floats, Floats]:
    """All eigenvalues, each with weight 1/n."""
    matrix = dense(operator, report).numpy()
    if not np.isfinite(matrix).all():
        raise NonFiniteLossError(NOT_FINITE)
    return np.linalg.eigvalsh(matrix), np.full(operator.size, 1 / operator.size)


def _quadrature(
    operator: Operator, generator: torch.Generator, steps: int, report: Callable[[int], None]
) -> tuple[Floats, Floats]:
    """Nodes and weights of the measure that one random vector sees."""
    recurrence = Recurrence(operator)
    recurrence.start_at_random(generator)
    diagonal: list[float] = []
    off: list[float] = []
    for k in range(steps):
        # Of column k only the diagonal is needed: the rest of it is β, which is known, and rounding.
        diagonal.append(float(recurrence.step()[-1]))
        report(k + 1)
        # Within a factor of two the norm of the tridiagonal matrix, which stands for that of A.
        scale = max(abs(a) for a in diagonal) + max(off, default=0.0)
        if k + 1 == steps or recurrence.ends(scale):
            break
        off.append(recurrence.beta)
        recurrence.go_on()
    # Golub and Welsch: the Gauss rule from the eigenvectors of the tridiagonal matrix.
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2


def _tell(report: Callable[[int, int], None], before: int, total: int, made: int) -> None:
    report(before + made, total)


def _smoothed(grid: Floats, nodes: Floats, weights: Floats, sigma: float) -> Floats:
    exponent = -0.5 * ((grid[:, None] - nodes[None, :]) / sigma) ** 2
    density: Floats = (np.exp(exponent) * weights).sum(axis=1) / (sigma * np.sqrt(2 * np.pi))
    return density
