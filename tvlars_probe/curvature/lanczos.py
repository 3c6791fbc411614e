"""Eigenvalues at both ends of a spectrum by Lanczos' method with thick restart.

Every new vector is made orthogonal to all before it. The projected matrix T = QᵀAQ is therefore exact to rounding, and
no eigenvalue appears twice. At every step the residual |β·s| of each Ritz pair tells whether it has converged; s is the
last component of its eigenvector of T. A full basis is compressed to the Ritz vectors at the ends of the spectrum, and
grows again from there (Wu and Simon, 2000, SIAM J. Matrix Anal. 22:602). An eigenvalue that is multiple to working
precision is found once, except in operators of at most `SMALLEST` dimensions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tvlars_probe.curvature.krylov import Recurrence
from tvlars_probe.curvature.results import Eigenvalue, Eigenvalues
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tvlars_probe.curvature.krylov import Basis
    from tvlars_probe.curvature.operators import Operator

    Floats = NDArray[np.float64]

SMALL = 1e-3
"""Below this share of the largest eigenvalue, an eigenvalue's tolerance is relative to the share, not to itself."""

MOST_MATVECS = 1000
"""Products after which an eigenvalue is given up, by default."""

NEARLY = 10.0
"""By the Kato-Temple criterion, a value has converged only if its residual is at most this many times its limit."""

SMALLEST = 64
"""Up to this size the basis grows to the whole space: multiple eigenvalues are found as often as they occur."""

CRITERIA = ("residual", "kato-temple")
"""What counts as the error of an eigenvalue; see `lanczos`."""


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Ritz pairs of A: eigenvalues of T, ascending; its eigenvectors, as columns; and the pairs' residual norms."""

    values: Floats
    vectors: Floats
    residuals: Floats

    def chosen(self, top: int, bottom: int) -> list[tuple[int, int]]:
        """(rank, index) of the wanted pairs: from the top down, then from the bottom up."""
        k = len(self.values)
        ends = [(rank, k - rank) for rank in range(1, top + 1)]
        return ends + [(-rank, rank - 1) for rank in range(1, bottom + 1)]

    def errors(self, criterion: str) -> Floats:
        """The residuals; by the Kato-Temple criterion residual²/gap where that is smaller.

        The gap is the distance to the nearest other value.
        """
        if criterion == "residual" or len(self.values) < 2:
            return self.residuals
        steps = np.diff(self.values)
        gaps = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
        squares = np.divide(self.residuals**2, gaps, out=np.full_like(gaps, np.inf), where=gaps > 0)
        return np.asarray(np.minimum(self.residuals, squares))

    def limits(self, tol: float) -> Floats:
        """The largest error with which each value counts as converged."""
        size = np.abs(self.values)
        return np.asarray(tol * np.maximum(size, SMALL * size.max(initial=0.0)))


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
        tol: a value λ has converged when its error is at most tol·max(|λ|, 0.001·max |λ|), its limit.
        criterion: what counts as the error. "residual" is ‖A v − λ v‖, a bound for λ and, to first order, for the
            vector. "kato-temple" is residual²/gap (Kato, 1949, J. Phys. Soc. Japan 4:334), an estimate for λ alone,
            because the gap is known from the Ritz values only. It takes fewer products. The value must then also have
            moved by no more than its limit in the last step, and the residual must be at most ten times the limit.
        seed: of the start vector.
        start: a vector to start from instead, for instance an eigenvector of a nearby operator.
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
    capacity = max(wanted + 3, min(basis_size or _affordable(operator), operator.size))
    process = _Process(operator, min(capacity, operator.size), torch.Generator().manual_seed(seed), start)
    convergence = _Convergence(top, bottom, tol, criterion)
    while True:
        process.step()
        ritz = process.ritz()
        enough = len(process.basis) >= (operator.size if operator.size <= min(SMALLEST, capacity) else wanted)
        if enough:
            convergence.update(ritz, is_exact=process.exhausted)
            report(process.matvecs, convergence.excess)
        # The budget ends nothing before there is a figure for each of the wanted values.
        if process.exhausted or (enough and (convergence.excess <= 1.0 or process.matvecs >= max_matvecs)):
            break
        process.extend(ritz, top, bottom)
    weights = torch.from_numpy(ritz.vectors[:, [i for _, i in convergence.pairs]].T.copy())
    return Eigenvalues(
        values=convergence.values(ritz, floor=torch.finfo(operator.dtype).eps),
        tol=tol,
        criterion=criterion,
        matvecs=process.matvecs,
        seconds=time.perf_counter() - began,
        vectors=process.basis.combine(weights) if vectors else None,
    )


class _Convergence:
    """Which of the wanted values have converged.

    Attributes:
        pairs: rank and index of each wanted value.
        errors: by the criterion, of each wanted value.
        converged: whether each wanted value has converged.
        excess: 0 if all have; else the largest error of the others as a multiple of its limit, above 1.
    """

    def __init__(self, top: int, bottom: int, tol: float, criterion: str) -> None:
        self._ends, self._tol, self._criterion = (top, bottom), tol, criterion
        self._before: Floats | None = None

    def update(self, ritz: _Ritz, *, is_exact: bool) -> None:
        """Judge the pairs after one more step; ``is_exact`` says that the basis spans the whole space."""
        self.pairs = ritz.chosen(*self._ends)
        wanted = [i for _, i in self.pairs]
        values = ritz.values[wanted]
        self.errors = ritz.errors(self._criterion)[wanted]
        limits = ritz.limits(self._tol)[wanted]
        self.converged = self.errors <= limits
        if self._criterion == "kato-temple" and not is_exact:
            # The gap to the nearest Ritz value is the gap to the nearest eigenvalue only once the values have settled.
            moved = np.inf if self._before is None else np.abs(values - self._before)
            self.errors = np.maximum(self.errors, moved)
            self.converged = (self.errors <= limits) & (ritz.residuals[wanted] <= NEARLY * limits)
        self._before = values
        # Above 1 wherever a value hasn't converged: one may fail by its residual alone, with an error within the limit.
        ratios = np.divide(self.errors, limits, out=np.full_like(limits, np.inf), where=limits > 0)
        self.excess = 0.0 if self.converged.all() else max(float(ratios[~self.converged].max()), 1.0 + 1e-9)

    def values(self, ritz: _Ritz, *, floor: float) -> tuple[Eigenvalue, ...]:
        """The results; no error is given as less than ``floor`` times the largest value, which is rounding."""
        least = floor * float(np.abs(ritz.values).max(initial=0.0))
        return tuple(
            Eigenvalue(
                rank,
                float(ritz.values[i]),
                residual=max(float(ritz.residuals[i]), least),
                error=max(float(error), least),
                converged=bool(converged),
            )
            for (rank, i), error, converged in zip(self.pairs, self.errors, self.converged, strict=True)
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
        # A copy, because the recurrence works in the memory of its start. A start of zeros gives way to a random one.
        if start is None or not self._recurrence.start(start.to(operator.device, operator.dtype, copy=True)):
            self._recurrence.start_at_random(generator)

    @property
    def basis(self) -> Basis:
        """Q."""
        return self._recurrence.basis

    @property
    def matvecs(self) -> int:
        """Number of products so far."""
        return self._recurrence.matvecs

    def step(self) -> None:
        """Make one product, by the newest vector, and enter it into T."""
        j = len(self.basis) - 1
        self._t[: j + 1, j] = self._t[j, : j + 1] = self._recurrence.step()

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return len(self.basis) == self.size

    def ritz(self) -> _Ritz:
        """Ritz pairs of the basis so far."""
        k = len(self.basis)
        values, vectors = np.linalg.eigh(self._t[:k, :k])
        # A Q = QT + β q eᵀ, with e the last unit vector: for an eigenpair (θ, s) of T, ‖A Qs − θ Qs‖ = β·|last of s|.
        residuals = np.zeros(k) if self.exhausted else self._recurrence.beta * np.abs(vectors[-1])
        return _Ritz(values, vectors, residuals)

    def extend(self, ritz: _Ritz, top: int, bottom: int) -> None:
        """Make room if the basis is full, and add the next vector."""
        if len(self.basis) == self.capacity:
            self._compress(ritz, top, bottom)
        scale = float(np.abs(ritz.values).max(initial=0.0))
        if self._recurrence.ends(scale):
            # The span is invariant, and the wanted eigenvectors may lie outside of it: go on orthogonal to it. The two
            # parts of A don't couple, so T stays right.
            self._recurrence.start_at_random(self.generator)
        else:
            self._recurrence.go_on()

    def _compress(self, ritz: _Ritz, top: int, bottom: int) -> None:
        """Keep the Ritz vectors at both ends of the spectrum, the wanted ones and some more, as the new basis."""
        # Half of what isn't wanted, shared between the ends as the wanted are: those nearest to the wanted would else
        # have to be found again, and slow down their convergence.
        spare = max((self.capacity - top - bottom) // 2, 1)
        share = spare * top // (top + bottom)
        high, low = top + share if top else 0, bottom + spare - share if bottom else 0
        k = len(ritz.values)
        # At most k − 1 of k, so that the next vector has room.
        kept = [*range(low), *range(k - min(high, k - low - 1), k)]
        self.basis.replace(self.basis.combine(torch.from_numpy(ritz.vectors[:, kept].T.copy())))
        # In Ritz vectors T is diagonal. What couples them to the next vector, β·s, is measured by its product.
        self._t[:] = 0.0
        self._t[range(len(kept)), range(len(kept))] = ritz.values[kept]
        self._recurrence.coupled = 0
