"""Eigenvalues at both ends of a spectrum by Lanczos' method with thick restart.

Every new vector is made orthogonal to all before it, so that the projected matrix T = QᵀAQ is exact to rounding and
no eigenvalue appears twice; convergence is tested at every step by the residual |β·s| of each Ritz pair; when the basis
is full it is compressed to the best Ritz vectors and goes on (Wu and Simon, 2000, SIAM J. Matrix Anal. 22:602). An
eigenvalue that is multiple to working precision is found once, except in operators of at most `SMALLEST` dimensions.
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
"""Eigenvalues below this share of the largest are resolved relative to that share instead of to themselves."""

MOST_MATVECS = 1000

NEARLY = 10.0
"""By the Kato-Temple estimate a value has converged only if its residual is at most this many times the tolerance."""

SMALLEST = 64
"""Operators of this size or less are taken apart wholly: then multiple eigenvalues are found as often as they occur."""

CRITERIA = ("residual", "kato-temple")


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Ritz pairs of the projected matrix: values ascending, vectors as columns, residual norms."""

    values: Floats
    vectors: Floats
    residuals: Floats

    def chosen(self, top: int, bottom: int) -> list[tuple[int, int]]:
        """Rank and index of the wanted pairs: from the top down, then from the bottom up."""
        k = len(self.values)
        ends = [(rank, k - rank) for rank in range(1, top + 1)]
        return ends + [(-rank, rank - 1) for rank in range(1, bottom + 1)]

    def errors(self, criterion: str) -> Floats:
        """The residuals, or residual²/gap where that is smaller; the gap is the distance to the nearest other value."""
        if criterion == "residual" or len(self.values) < 2:
            return self.residuals
        steps = np.diff(self.values)
        gaps = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
        squares = np.divide(self.residuals**2, gaps, out=np.full_like(gaps, np.inf), where=gaps > 0)
        return np.asarray(np.minimum(self.residuals, squares))

    def limits(self, tol: float) -> Floats:
        """Residual at which each value counts as converged."""
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
        top: how many from the top.
        bottom: how many from the bottom.
        tol: a value λ has converged when its error is at most tol·max(|λ|, 0.001·max |λ|).
        criterion: what counts as the error: "residual", ‖A v − λ v‖, a bound for λ and to first order for the vector;
            or "kato-temple", residual²/gap, an estimate for λ alone (the gap is known from the Ritz values only), which
            takes fewer products (Kato, 1949, J. Phys. Soc. Japan 4:334); the value must also have moved by no more
            than tol in the last step, and the residual be at most ten times the tolerance.
        seed: of the start vector.
        start: start from this vector instead, for instance an eigenvector of a nearby operator.
        max_matvecs: stop after so many products; what hasn't converged by then is marked.
        basis_size: most vectors in memory (n numbers each); by default what 2 GiB hold, 16 to 300.
        vectors: also return the eigenvectors.
        report: called with the number of products and the largest residual relative to its limit.

    Returns:
        Eigenvalues with residuals; fewer than asked for are an error, not converged ones are data.

    Raises:
        UserError: more eigenvalues than the operator has, or no products to make.
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
    capacity = max(wanted + 3, min(basis_size or _affordable(operator), operator.size))
    process = _Process(operator, min(capacity, operator.size), torch.Generator().manual_seed(seed), start)
    verdict = _Verdict(top, bottom, tol, criterion)
    while True:
        process.step()
        ritz = process.ritz()
        enough = len(process.basis) >= (operator.size if operator.size <= min(SMALLEST, capacity) else wanted)
        if enough:
            verdict.update(ritz, is_exact=process.exhausted)
            report(process.matvecs, verdict.excess)
        if process.exhausted or (enough and (verdict.excess <= 1.0 or process.matvecs >= max_matvecs)):
            break
        process.extend(ritz, top, bottom)
    weights = torch.from_numpy(ritz.vectors[:, [i for _, i in verdict.pairs]].T.copy())
    return Eigenvalues(
        values=verdict.values(ritz, floor=torch.finfo(operator.dtype).eps),
        tol=tol,
        criterion=criterion,
        matvecs=process.matvecs,
        seconds=time.perf_counter() - began,
        vectors=process.basis.combine(weights) if vectors else None,
    )


class _Verdict:
    """Which of the wanted values have converged."""

    def __init__(self, top: int, bottom: int, tol: float, criterion: str) -> None:
        self._ends, self._tol, self._criterion = (top, bottom), tol, criterion
        self._before: Floats | None = None

    def update(self, ritz: _Ritz, *, is_exact: bool) -> None:
        """Judge the pairs of one more step."""
        self.pairs = ritz.chosen(*self._ends)
        wanted = [i for _, i in self.pairs]
        values = ritz.values[wanted]
        self.errors = ritz.errors(self._criterion)[wanted]
        limits = ritz.limits(self._tol)[wanted]
        self.converged = self.errors <= limits
        if self._criterion == "kato-temple" and not is_exact:
            # It takes the gap from the Ritz values, which holds only once these have settled.
            moved = np.inf if self._before is None else np.abs(values - self._before)
            self.errors = np.maximum(self.errors, moved)
            self.converged = (self.errors <= limits) & (ritz.residuals[wanted] <= NEARLY * limits)
        self._before = values
        ratios = np.divide(self.errors, limits, out=np.full_like(limits, np.inf), where=limits > 0)
        self.excess = 0.0 if self.converged.all() else max(float(ratios[~self.converged].max()), 1.0 + 1e-9)

    def values(self, ritz: _Ritz, *, floor: float) -> tuple[Eigenvalue, ...]:
        """The results; no error is given as less than ``floor`` times the largest value."""
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
    bytes_each = operator.size * torch.finfo(operator.dtype).bits // 8
    return int(np.clip((2 << 30) // bytes_each, 16, 300))


class _Process:
    """The growing basis Q and the projected matrix T."""

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator, start: Tensor | None) -> None:
        self.size, self.generator, self.capacity = operator.size, generator, capacity
        self._recurrence = Recurrence(operator)
        self._t = np.zeros((capacity, capacity))
        if start is None or not self._recurrence.start(start.to(operator.device, operator.dtype, copy=True)):
            self._recurrence.start_at_random(generator)

    @property
    def basis(self) -> Basis:
        """Q."""
        return self._recurrence.basis

    @property
    def matvecs(self) -> int:
        """Products so far."""
        return self._recurrence.matvecs

    def step(self) -> None:
        """One product, by the newest vector."""
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
        residuals = np.zeros(k) if self.exhausted else self._recurrence.beta * np.abs(vectors[-1])
        return _Ritz(values, vectors, residuals)

    def extend(self, ritz: _Ritz, top: int, bottom: int) -> None:
        """Make room if the basis is full, and add the next vector."""
        if len(self.basis) == self.capacity:
            self._compress(ritz, top, bottom)
        scale = float(np.abs(ritz.values).max(initial=0.0))
        if self._recurrence.ends(scale):
            self._recurrence.start_at_random(self.generator)  # outside of the subspace
        else:
            self._recurrence.go_on()

    def _compress(self, ritz: _Ritz, top: int, bottom: int) -> None:
        """Keep the Ritz vectors at both ends, the wanted ones and some more."""
        spare = max((self.capacity - top - bottom) // 2, 1)
        share = spare * top // (top + bottom)
        high, low = top + share if top else 0, bottom + spare - share if bottom else 0
        k = len(ritz.values)
        kept = [*range(low), *range(k - min(high, k - low - 1), k)]
        self.basis.replace(self.basis.combine(torch.from_numpy(ritz.vectors[:, kept].T.copy())))
        self._t[:] = 0.0
        self._t[range(len(kept)), range(len(kept))] = ritz.values[kept]
        self._recurrence.coupled = 0
