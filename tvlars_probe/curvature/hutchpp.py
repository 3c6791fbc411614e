"""The trace by Hutch++ (Meyer, Musco, Musco and Woodruff, 2021, SOSA).

A third of the products find a subspace Q that holds the large eigenvalues; there the trace is exact. Hutchinson's
estimator serves only for the rest: tr(A) = tr(QᵀAQ) + E[gᵀ(I − QQᵀ)A(I − QQᵀ)g] for vectors g of random signs. Its
error falls like 1/m instead of 1/√m where the spectrum decays.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING

import torch

from tvlars_probe.curvature.krylov import NOT_FINITE, Basis, rademacher_vector
from tvlars_probe.curvature.operators import dense
from tvlars_probe.curvature.results import TraceEstimate
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.curvature.operators import Operator


def hutchpp(
    operator: Operator,
    *,
    num_matvecs: int = 45,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> TraceEstimate:
    """The trace of a symmetric operator, unbiased.

    Args:
        operator: A, of size n.
        num_matvecs: products to spend, at least 6; n or more make the result exact, by n products.
        seed: of the random vectors.
        report: called with the products made and the products to make.

    Raises:
        UserError: too few products to tell the error.

    Example:
        >>> hutchpp(DenseOperator(torch.eye(10, dtype=torch.float64)), num_matvecs=10).value
        10.0
    """
    if num_matvecs < 6:
        raise UserError(f"{num_matvecs} products don't give a trace with its error: use 6 or more")
    began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    total, basis, made = min(num_matvecs, operator.size), Basis(operator), 0

    def product(v: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        report(made, total)
        return operator.matvec(v)

    samples = []
    if operator.size <= num_matvecs:
        exact = dense(operator, lambda count: report(count, total)).trace().item()
        made = operator.size
    else:
        for _ in range(num_matvecs // 3):
            basis.add_direction(product(rademacher_vector(operator, generator)))
        exact = math.fsum(basis.coefficients(product(basis[i]))[i].item() for i in range(len(basis)))
        for _ in range(num_matvecs - made):
            g = rademacher_vector(operator, generator)
            basis.remove(g)
            holder = Basis(operator)
            holder.append(g)
            samples.append(holder.coefficients(product(g)).item())
    if not math.isfinite(exact) or not all(map(math.isfinite, samples)):
        raise NonFiniteLossError(NOT_FINITE)
    error = statistics.stdev(samples) / math.sqrt(len(samples)) if samples else 0.0
    value = exact + (statistics.fmean(samples) if samples else 0.0)
    return TraceEstimate(value=value, standard_error=error, matvecs=made, seconds=time.perf_counter() - began)
