"""Eigenvalues at both ends of a spectrum by Lanczos' method with thick restart.

Every new vector is made orthogonal to all before it. The projected matrix T = QᵀAQ is therefore exact to rounding, and
no eigenvalue appears twice. At every step the residual |β·s| of each Ritz pair tells whether it has converged; s is the
last component of its eigenvector of T. A full basis is compressed to the Ritz vectors at the ends of the spectrum, and
grows again from there (Wu and Simon, 2000, SIAM J. Matrix Anal. 22:602). An eigenvalue that is multiple to working
precision is found once, except in operators of at most `SMALLEST` dimensions.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tvlars_probe.curvature.convergence import Convergence, Ritz
from tvlars_probe.curvature.hidden import HiddenShares
from tvlars_probe.curvature.krylov import Recurrence, is_symmetric, norm, random_vector
from tvlars_probe.curvature.results import CRITERIA, Eigenvalues
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tvlars_probe.curvature.krylov import Basis
    from tvlars_probe.curvature.operators import Operator

    Floats = NDArray[np.float64]

MOST_MATVECS = 1000
"""Products after which an eigenvalue is given up, by default."""

SMALLEST = 64
"""Up to this size the basis grows to the whole space: multiple eigenvalues are found as often as they occur."""

RANDOM = 0.3
"""Norm of the random vector that is added to a start of norm 1: without it the start may hold nothing of the top."""


def lanczos(
    operator: Operator,
    *,
    top: int = 1,
    bottom: int = 0,
    tol: float = 1e-3,
    criterion: str = "residual",
    seed: int = 0,
    start: Tensor | None = None,
    max_matvecs: int = MOST_MATVECS,
    basis_size: int | None = None,
    vectors: bool = False,
    report: Callable[[int, float], None] = lambda *_: None,
) -> Eigenvalues:
    """Eigenvalues at the ends of the spectrum of a symmetric operator.

    Args:
        operator: A, of size n.
        top: number of eigenvalues from the top.
        bottom: number of eigenvalues from the bottom.
        tol: a value λ has converged when its error is at most tol·max(|λ|, 0.001·max |λ|), its limit, and
            no eigenvalue can hide further from it than that. The error is the larger of both.
        criterion: what counts as the error. "residual" is ‖A v − λ v‖, a bound for λ and, to first order, for the
            vector. "kato-temple" is residual²/gap (Kato, 1949, J. Phys. Soc. Japan 4:334), an estimate for λ alone,
            because the gap is known from the Ritz values only. It takes fewer products. The value must then also have
            moved by no more than its limit in the last step, and the residual must be at most ten times the limit.
        seed: of the start vector.
        start: a vector to start from instead, for instance an eigenvector of a nearby operator. A random vector of
            `RANDOM` times its norm is added.
        max_matvecs: number of products after which to stop; values that haven't converged by then are marked. As many
            products as eigenvalues are made in any case, and n where n is at most `SMALLEST`.
        basis_size: most vectors in memory, n numbers each; by default as many as 2 GiB hold, but 16 to 300.
        vectors: also return the eigenvectors.
        report: called with the number of products and the largest error as a multiple of its limit; 0 when all values
            have converged.

    Returns:
        The eigenvalues with their errors. Those that haven't converged are among them, marked.

    Raises:
        UserError: no eigenvalues, or more than the operator has; an unknown criterion; no products to make.
        NonFiniteLossError: a product isn't finite.

    Example:
        >>> matrix = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
        >>> round(lanczos(DenseOperator(matrix), top=2, tol=1e-8)[2].value, 6)
        99.0
    """
    wanted = top + bottom
    if top < 0 or bottom < 0 or not wanted:
        raise UserError(f"top={top}, bottom={bottom}: ask for at least one eigenvalue")
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if max_matvecs < 1:
        raise UserError(f"max_matvecs={max_matvecs}: allow one product at least")
    if wanted > operator.size:
        raise UserError(f"{wanted} eigenvalues of an operator with {operator.size}: ask for fewer")
    began = time.perf_counter()
    # Three more than wanted: after a restart there is room for a spare Ritz vector and for new directions.
    capacity = min(operator.size, max(wanted + 3, basis_size or _affordable(operator)))
    # A small operator is taken apart wholly.
    least = operator.size if operator.size == capacity <= SMALLEST else wanted
    process = _Process(operator, capacity, torch.Generator().manual_seed(seed), start)
    convergence = Convergence(top, bottom, tol, criterion)
    while True:
        process.step()
        ritz = process.ritz()
        enough = len(process.basis) >= least
        if enough:
            convergence.update(ritz, process.hidden, is_exact=process.exhausted)
            report(process.matvecs, convergence.excess)
        # The budget ends nothing before there is a figure for each of the wanted values.
        if process.exhausted or (enough and (convergence.converged.all() or process.matvecs >= max_matvecs)):
            break
        process.extend(ritz, top, bottom)
    weights = torch.from_numpy(ritz.vectors[:, [i for _, i in convergence.pairs]].T.copy())
    scale = float(np.abs(ritz.values).max())
    symmetric = is_symmetric(process.asymmetry, scale, operator.dtype)
    return Eigenvalues(
        values=convergence.values(
            ritz, floor=torch.finfo(operator.dtype).eps, asymmetry=0.0 if symmetric else process.asymmetry
        ),
        tol=tol,
        criterion=criterion,
        matvecs=process.matvecs,
        seconds=time.perf_counter() - began,
        symmetric=symmetric,
        asymmetry=process.asymmetry / scale if scale else 0.0,
        vectors=process.basis.combine(weights) if vectors else None,
        combined=process.combined(ritz, weights.sum(0)) if vectors else None,
    )


def _affordable(operator: Operator) -> int:
    # At most 300: a step costs an eigendecomposition of T and a product with the basis, which grow with its size.
    bytes_each = operator.size * torch.finfo(operator.dtype).bits // 8
    return int(np.clip((2 << 30) // bytes_each, 16, 300))


class _Process:
    """The growing basis Q and the projected matrix T."""

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator, start: Tensor | None) -> None:
        self.size, self.generator, self.capacity = operator.size, generator, capacity
        self._recurrence = Recurrence(operator)
        self._t = np.zeros((capacity, capacity))
        self._origin, self.hidden = 0, HiddenShares(self.size)
        self._first: tuple[Tensor, Tensor] | None = None
        if start is None or not self._start_near(start.to(operator.device, operator.dtype, copy=True), operator):
            self._recurrence.start_at_random(generator)

    def _start_near(self, v: Tensor, operator: Operator) -> bool:
        """Start from ``v`` and a random vector; False where ``v`` is zero."""
        length = norm(v)
        if length == 0:
            return False
        random = random_vector(operator, self.generator)
        v.div_(length).add_(random, alpha=RANDOM / norm(random))
        self.hidden = HiddenShares(self.size, RANDOM / norm(v))
        return self._recurrence.start(v)

    @property
    def basis(self) -> Basis:
        """Q."""
        return self._recurrence.basis

    @property
    def matvecs(self) -> int:
        """Number of products so far."""
        return self._recurrence.matvecs

    @property
    def asymmetry(self) -> float:
        """The largest asymmetry of the products so far; see `Recurrence`."""
        return self._recurrence.asymmetry

    def step(self) -> None:
        """Make one product, by the newest vector, and enter it into T."""
        j = len(self.basis) - 1
        self._t[: j + 1, j] = self._t[j, : j + 1] = self._recurrence.step()

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return len(self.basis) == self.size

    def ritz(self) -> Ritz:
        """Ritz pairs of the basis so far."""
        k = len(self.basis)
        # By torch: numpy would start a thread per core in every rank, whatever `--threads` says, for so small a matrix.
        values, vectors = (each.numpy() for each in torch.linalg.eigh(torch.from_numpy(self._t[:k, :k])))
        # A Q = QT + β q eᵀ, with e the last unit vector: for an eigenpair (θ, s) of T, A Qs = θ Qs + β·(last of s)·q.
        couplings = np.zeros(k) if self.exhausted else self._recurrence.beta * vectors[-1]
        return Ritz(values, vectors, couplings, vectors[self._origin])

    def combined(self, ritz: Ritz, weights: Tensor) -> tuple[Tensor, Tensor]:
        """w = Q·weights + √n·q_0 and A w, with the start q_0, which is random or holds a random part."""
        y, size = weights.clone(), math.sqrt(self.size)
        if self._first is None:
            y[0] += size
        # A Q y = Q T y + (last of y)·(what is left of the last product).
        projected = ritz.vectors @ (ritz.values * (ritz.vectors.T @ y.numpy()))
        w, product = self.basis.combine(torch.stack([y, torch.from_numpy(projected)]))
        product.add_(self._recurrence.left, alpha=y[-1].item())
        for total, part in zip((w, product), self._first or (), strict=False):
            total.add_(part, alpha=size)
        return w, product

    def extend(self, ritz: Ritz, top: int, bottom: int) -> None:
        """Make room if the basis is full, and add the next vector."""
        # Taken before the basis is compressed, which may leave the largest value out.
        scale = float(np.abs(ritz.values).max(initial=0.0))
        couplings = self._compress(ritz, top, bottom) if len(self.basis) == self.capacity else None
        if self._recurrence.ends(scale):
            # The span is invariant, and the wanted eigenvectors may lie outside of it: go on orthogonal to it. The two
            # parts of A don't couple, so T stays right. What hides now has a share of the new random vector.
            self._origin, self.hidden = len(self.basis), HiddenShares(self.size)
            self._recurrence.start_at_random(self.generator)
        else:
            self._recurrence.go_on(couplings)

    def _compress(self, ritz: Ritz, top: int, bottom: int) -> Floats:
        """Keep the Ritz vectors at both ends of the spectrum, the wanted ones and some more, as the new basis.

        Returns:
            what couples each of them to the next vector.
        """
        # Half of what isn't wanted, shared between the ends as the wanted are: those nearest to the wanted would else
        # have to be found again, and slow down their convergence.
        spare = max((self.capacity - top - bottom) // 2, 1)
        share = spare * top // (top + bottom)
        high, low = top + share if top else 0, bottom + spare - share if bottom else 0
        k = len(ritz.values)
        # At most k − 1 of k, so that the next vector has room.
        kept = [*range(low), *range(k - min(high, k - low - 1), k)]
        if self._first is None:  # q_0 and A q_0, which the new basis doesn't hold
            unit = torch.eye(k, dtype=torch.float64)[0]
            start, product = self.basis.combine(torch.stack([unit, torch.from_numpy(self._t[:k, 0].copy())]))
            self._first = start, product
        self.basis.replace(self.basis.combine(torch.from_numpy(ritz.vectors[:, kept].T.copy())))
        # In Ritz vectors T is diagonal. What couples them to the next vector is measured by its product.
        self._t[:] = 0.0
        self._t[range(len(kept)), range(len(kept))] = ritz.values[kept]
        self.hidden.end_factor(ritz.values, ritz.starts * ritz.couplings)
        self._origin = len(kept)
        return ritz.couplings[kept]
