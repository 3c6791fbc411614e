"""Keskar's ε-sharpness: how far the loss f can rise in a small box (Keskar et al., 2017, arXiv:1609.04836).

The box is |δ_i| <= ε(|w_i| + 1), or in a random subspace with orthonormal columns P, δ = P·y and
|y_i| <= ε(|(Pᵀw)_i| + 1). L-BFGS-B searches it for at most ten iterations from a small random point (at the centre of a
minimum the gradient is zero), and the best point that it evaluated counts: the result is a lower bound.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tvlars_probe.curvature.krylov import Basis, random_vector
from tvlars_probe.curvature.results import EpsilonSharpness
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tvlars_probe.curvature.objective import Objective

    Floats = NDArray[np.float64]

EPSILONS = (1e-3, 5e-4)
DIMENSIONS = 100
ITERATIONS = 10


class _Landscape:
    """f along δ; the weights are moved and put back."""

    def __init__(self, objective: Objective, parameters: Mapping[str, Tensor]) -> None:
        self.objective = objective
        self.params = [p for p in parameters.values() if p.requires_grad]
        self.origin = [p.detach().clone() for p in self.params]
        self.size = sum(p.numel() for p in self.params)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self.evaluations = 0

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:  # what a basis asks of an operator: the identity
        return v if out is None else out.copy_(v)

    @property
    def weights(self) -> Tensor:
        """w, shape (n,)."""
        return torch.cat([p.reshape(-1) for p in self.origin])

    def evaluate(self, delta: Tensor) -> tuple[float, Tensor]:
        """f(w + δ) and its gradient."""
        self.evaluations += 1
        try:
            parts = torch.split(delta, [p.numel() for p in self.params])
            for p, origin, part in zip(self.params, self.origin, parts, strict=True):
                p.data.copy_(origin + part.view(p.shape))
            return self._differentiate()
        finally:
            for p, origin in zip(self.params, self.origin, strict=True):
                p.data.copy_(origin)

    def _differentiate(self) -> tuple[float, Tensor]:
        value = torch.zeros(1, dtype=torch.float64, device=self.device)
        gradient = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for index in range(len(self.objective.batches)):
            term = self.objective.term(index)
            parts = torch.autograd.grad(term, self.params, materialize_grads=True, allow_unused=True)
            value += term.detach().double()
            gradient += torch.cat([part.reshape(-1) for part in parts])
        shards = self.objective.shards
        return shards.sum(value).item(), shards.sum(gradient)


def epsilon_sharpness(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    *,
    epsilon: float = 1e-3,
    dimensions: int | None = DIMENSIONS,
    seed: int = 0,
    report: Callable[[float], None] = lambda _: None,
) -> EpsilonSharpness:
    """100·(max f − f)/(1 + f) over the box.

    Args:
        objective: f.
        parameters: that may move, by name.
        epsilon: size of the box, > 0.
        dimensions: of a random subspace; None searches the whole space.
        seed: of the subspace and of the first point.
        report: called with the highest loss so far.

    Raises:
        UserError: epsilon is not positive.
    """
    if not epsilon > 0:
        raise UserError(f"epsilon {epsilon} is no size of a box (allowed: above 0)")
    began = time.perf_counter()
    with objective.held():
        landscape = _Landscape(objective, parameters)
        lift, centre = _coordinates(landscape, dimensions, torch.Generator().manual_seed(seed))
        bound = epsilon * (np.abs(centre) + 1)
        loss, _ = landscape.evaluate(lift[0](np.zeros_like(bound)))
        highest = loss

        def negated(y: Floats) -> tuple[float, Floats]:
            nonlocal highest
            value, gradient = landscape.evaluate(lift[0](y))
            highest = max(highest, value)
            report(highest)
            return -value, -lift[1](gradient)

        first = np.random.default_rng(seed).uniform(-0.1, 0.1, bound.shape) * bound
        minimize(  # type: ignore[call-overload]
            negated, first, jac=True, method="L-BFGS-B", bounds=np.stack([-bound, bound], 1),
            options={"maxiter": ITERATIONS},
        )  # fmt: skip
    return EpsilonSharpness(
        epsilon=epsilon,
        dimensions=dimensions if dimensions is not None and dimensions < landscape.size else None,
        value=100 * (highest - loss) / (1 + loss),
        loss=loss,
        highest=highest,
        evaluations=landscape.evaluations,
        seconds=time.perf_counter() - began,
    )


def _coordinates(
    landscape: _Landscape, dimensions: int | None, generator: torch.Generator
) -> tuple[tuple[Callable[[Floats], Tensor], Callable[[Tensor], Floats]], Floats]:
    """From coordinates to δ, from a gradient to coordinates, and the coordinates of w."""

    def numbers(v: Tensor) -> Floats:
        return np.asarray(v.detach().double().cpu().numpy())

    def tensor(y: Floats) -> Tensor:
        return torch.from_numpy(y).to(landscape.device, landscape.dtype)

    if dimensions is None or dimensions >= landscape.size:
        return (tensor, numbers), numbers(landscape.weights)
    basis = Basis(landscape)
    while len(basis) < dimensions:
        basis.add_direction(random_vector(landscape, generator))

    def up(y: Floats) -> Tensor:
        return basis.combine(torch.from_numpy(y)[None])[0]

    def down(v: Tensor) -> Floats:
        return numbers(basis.coefficients(v))

    return (up, down), down(landscape.weights)
