"""Keskar's ε-sharpness: how far the loss f can rise in a small box (Keskar et al., 2017, arXiv:1609.04836).

In the whole space the box is |δ_i| <= ε(|w_i| + 1). In a random subspace with orthonormal basis P it is δ = P·y with
|y_i| <= ε(|(Pᵀw)_i| + 1); Pᵀ is the pseudo-inverse in the paper's definition. L-BFGS-B searches the box for at most ten
iterations. The highest loss that it evaluated counts, so the result is a lower bound.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
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
"""The paper's two sizes of the box."""

DIMENSIONS = 100
"""Dimensions of the paper's random subspace."""

ITERATIONS = 10
"""At most so many iterations of L-BFGS-B, as in the paper; each may evaluate the loss several times."""


class _ShiftedLoss:
    """f(w + δ) as a function of δ; each evaluation moves the weights and puts them back."""

    def __init__(self, objective: Objective, parameters: Mapping[str, Tensor]) -> None:
        self.objective = objective
        self.params = [p for p in parameters.values() if p.requires_grad]
        self.origin = [p.detach().clone() for p in self.params]
        self.size = sum(p.numel() for p in self.params)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self.evaluations = 0

    # A Basis takes an Operator for its size, type and device, and never multiplies by it.
    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return v if out is None else out.copy_(v)

    @property
    def weights(self) -> Tensor:
        """w, shape (n,)."""
        return torch.cat([p.reshape(-1) for p in self.origin])

    def evaluate(self, delta: Tensor) -> tuple[float, Tensor]:
        """f(w + δ) and its gradient, shape (n,)."""
        self.evaluations += 1
        try:
            parts = torch.split(delta, [p.numel() for p in self.params])
            for p, origin, part in zip(self.params, self.origin, parts, strict=True):
                p.data.copy_(origin + part.view(p.shape))  # autograd forbids changing p itself in place
            return self._differentiate()
        finally:
            # By a copy, because subtracting δ would round. After each evaluation, because any of them may fail.
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
    """Search the box for the highest loss; the sharpness is 100·(max f − f)/(1 + f).

    Args:
        objective: f.
        parameters: the parameters that may move, by name.
        epsilon: size of the box, > 0.
        dimensions: of the random subspace to search; None searches the whole space.
        seed: of the subspace and of the first point.
        report: called with the highest loss so far.

    Raises:
        UserError: epsilon is not positive; no parameter may move.
    """
    if not epsilon > 0:
        raise UserError(f"epsilon {epsilon} is no size of a box (allowed: above 0)")
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError("no parameter is chosen that requires a gradient")
    began = time.perf_counter()
    with objective.held():
        shifted = _ShiftedLoss(objective, parameters)
        lift, centre = _coordinates(shifted, dimensions, torch.Generator().manual_seed(seed))
        bound = epsilon * (np.abs(centre) + 1)
        # The centre counts as searched, so the sharpness isn't negative.
        loss, _ = shifted.evaluate(lift[0](np.zeros_like(bound)))
        highest = loss

        def negated(y: Floats) -> tuple[float, Floats]:
            nonlocal highest
            # Sums over the ranks: each rank's search takes the same steps, and all meet in every collective.
            value, gradient = shifted.evaluate(lift[0](y))
            highest = max(highest, value)  # in this order max ignores NaN
            report(highest)
            return -value, -lift[1](gradient)

        from scipy.optimize import minimize  # which takes long to import, and few who measure search

        # Not from the centre: at a minimum the gradient is zero there, and the search would end at once.
        first = np.random.default_rng(seed).uniform(-0.1, 0.1, bound.shape) * bound
        minimize(  # type: ignore[call-overload]
            negated, first, jac=True, method="L-BFGS-B", bounds=np.stack([-bound, bound], 1),
            options={"maxiter": ITERATIONS},
        )  # fmt: skip
    return EpsilonSharpness(
        epsilon=epsilon,
        # For a subspace as large as the space, the whole space was searched.
        dimensions=dimensions if dimensions is not None and dimensions < shifted.size else None,
        value=100 * (highest - loss) / (1 + loss),
        loss=loss,
        highest=highest,
        evaluations=shifted.evaluations,
        seconds=time.perf_counter() - began,
    )


def _coordinates(
    shifted: _ShiftedLoss, dimensions: int | None, generator: torch.Generator
) -> tuple[tuple[Callable[[Floats], Tensor], Callable[[Tensor], Floats]], Floats]:
    """The coordinates in which the box is searched: y in a random subspace, or δ itself.

    Returns:
        a pair of maps, from coordinates to δ and from a gradient to its coordinates; and the coordinates of w.
    """

    def numbers(v: Tensor) -> Floats:
        return np.asarray(v.detach().double().cpu().numpy())

    def tensor(y: Floats) -> Tensor:
        return torch.from_numpy(y).to(shifted.device, shifted.dtype)

    if dimensions is None or dimensions >= shifted.size:
        return (tensor, numbers), numbers(shifted.weights)
    basis = Basis(shifted)
    # Orthonormalised normal vectors span a subspace of uniformly distributed direction.
    while len(basis) < dimensions:
        basis.add_direction(random_vector(shifted, generator))

    def up(y: Floats) -> Tensor:
        return basis.combine(torch.from_numpy(y)[None])[0]

    def down(v: Tensor) -> Floats:
        return numbers(basis.coefficients(v))

    return (up, down), down(shifted.weights)
