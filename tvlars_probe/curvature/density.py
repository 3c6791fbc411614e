"""The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017, SIAM J. Matrix Anal. 38:1075).

For a random unit vector v the spectral measure of A seen from v is, on average, the spectral density. m Lanczos steps
from v give its m-node Gauss quadrature: the eigenvalues of the tridiagonal matrix, weighted by the squared first
components of their eigenvectors. Where that takes no fewer products than the operator has dimensions, the matrix itself
is made of as many, and the density is exact.
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
        probes: random vectors; the standard error comes from their spread. By default 4 to 20, fewer for larger
            operators, whose random vectors see more of the spectrum each.
        steps: Lanczos steps from each: nodes of its quadrature.
        points: of the grid.
        sigma: width of the smoothing; by default 0.2 % of the spectrum's width.
        seed: of the random vectors.
        report: called with the products made and the products to make.

    Raises:
        UserError: no probes or no steps.
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
    width = float(np.ptp(nodes)) or max(float(np.abs(nodes).max()), 1.0)
    spread = 0.002 * width if sigma is None else sigma
    grid = np.linspace(nodes.min() - 5 * spread, nodes.max() + 5 * spread, points)
    each = np.stack([_smoothed(grid, n, w, spread) for n, w in rules])
    error = each.std(axis=0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(points, np.nan if probes else 0.0)
    order = np.argsort(nodes)
    return Density(
        nodes=nodes[order], weights=weights[order], grid=grid, density=each.mean(axis=0), standard_error=error,
        sigma=spread, matvecs=sum(len(n) for n, _ in rules), probes=probes, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _exact(operator: Operator, report: Callable[[int], None]) -> tuple[Floats, Floats]:
    """The eigenvalues, all of one weight."""
    matrix = dense(operator, report).numpy()
    if not np.isfinite(matrix).all():
        raise NonFiniteLossError(NOT_FINITE)
    return np.linalg.eigvalsh(matrix), np.full(operator.size, 1 / operator.size)


def _quadrature(
    operator: Operator, generator: torch.Generator, steps: int, report: Callable[[int], None]
) -> tuple[Floats, Floats]:
    """Nodes and weights of the measure seen from one random vector."""
    recurrence = Recurrence(operator)
    recurrence.start_at_random(generator)
    diagonal: list[float] = []
    off: list[float] = []
    for k in range(steps):
        diagonal.append(float(recurrence.step()[-1]))
        report(k + 1)
        scale = max(abs(a) for a in diagonal) + max(off, default=0.0)
        if k + 1 == steps or recurrence.ends(scale):
            break
        off.append(recurrence.beta)
        recurrence.go_on()
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2


def _tell(report: Callable[[int, int], None], before: int, total: int, made: int) -> None:
    report(before + made, total)


def _smoothed(grid: Floats, nodes: Floats, weights: Floats, sigma: float) -> Floats:
    exponent = -0.5 * ((grid[:, None] - nodes[None, :]) / sigma) ** 2
    density: Floats = (np.exp(exponent) * weights).sum(axis=1) / (sigma * np.sqrt(2 * np.pi))
    return density
