"""Whether Lanczos' figures have converged: the errors of its Ritz pairs, and what can still hide beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.curvature.results import Eigenvalue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.curvature.hidden import HiddenShares

    Floats = NDArray[np.float64]

SMALL = 1e-3
"""Below this share of the largest eigenvalue, an eigenvalue's tolerance is relative to the share, not to itself."""

NEARLY = 10.0
"""By the Kato-Temple criterion, a value has converged only if its residual is at most this many times its limit."""


def limit(value: float, scale: float, tol: float) -> float:
    """The largest error with which a value counts as converged, where ``scale`` is the largest magnitude of all."""
    return tol * max(abs(value), SMALL * scale)


@dataclass(frozen=True, slots=True)
class Ritz:
    """Ritz pairs of A: eigenpairs of its projection T on a basis, in ascending order.

    Attributes:
        values: eigenvalues θ_i of T, shape (k,).
        vectors: its unit eigenvectors, as columns.
        couplings: r_i with A x_i = θ_i x_i + r_i q, for the Ritz vectors x_i and the next vector q of the basis.
        starts: component of each Ritz vector along the vector that the basis has grown from.
    """

    values: Floats
    vectors: Floats
    couplings: Floats
    starts: Floats

    @property
    def residuals(self) -> Floats:
        """‖A x_i − θ_i x_i‖."""
        return np.abs(self.couplings)

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
        scale = float(np.abs(self.values).max(initial=0.0))
        return np.array([limit(value, scale, tol) for value in self.values])


class Convergence:
    """Which of the wanted values have converged.

    A value has converged when its error by the criterion is within its limit, and when no other eigenvalue can hide
    further from it than that: see `tvlars_probe.curvature.hidden`. Its error is the larger of both.

    Args:
        top: number of values from the top.
        bottom: number of values from the bottom.
        tol: relative error asked for.
        criterion: what counts as the error, one of `tvlars_probe.curvature.results.CRITERIA`.

    Attributes:
        pairs: rank and index of each wanted value.
        errors: of each wanted value.
        converged: whether each wanted value has converged.
        excess: 0 if all have; else the largest error of the others as a multiple of its limit.
    """

    def __init__(self, top: int, bottom: int, tol: float, criterion: str) -> None:
        self._ends, self._tol, self._criterion = (top, bottom), tol, criterion
        self._before: Floats | None = None

    def update(self, ritz: Ritz, hidden: HiddenShares, *, is_exact: bool) -> None:
        """Judge the pairs after one more step; ``is_exact`` says that the basis spans the whole space."""
        self.pairs = ritz.chosen(*self._ends)
        wanted = [i for _, i in self.pairs]
        values = ritz.values[wanted]
        self.errors = ritz.errors(self._criterion)[wanted]
        limits = ritz.limits(self._tol)[wanted]
        self.converged = self.errors <= limits
        if not is_exact:
            if self._criterion == "kato-temple":
                # The gap to the nearest Ritz value is that to the nearest eigenvalue only once the values have settled.
                moved = np.inf if self._before is None else np.abs(values - self._before)
                self.errors = np.maximum(self.errors, moved)
                self.converged = (self.errors <= limits) & (ritz.residuals[wanted] <= NEARLY * limits)
            each = zip(self.pairs, limits, strict=True)
            reaches = np.array([self._reach(ritz, hidden, *pair, limit=most) for pair, most in each])
            # Where nothing is excluded yet there is no figure for it, and the value hasn't converged.
            self.errors = np.where(np.isfinite(reaches), np.maximum(self.errors, reaches), self.errors)
            self.converged &= reaches <= limits
        self._before = values
        ratios = np.divide(self.errors, limits, out=np.full_like(limits, np.inf), where=limits > 0)
        self.excess = float(ratios[~self.converged].max(initial=0.0))

    def _reach(self, ritz: Ritz, hidden: HiddenShares, rank: int, index: int, *, limit: float) -> float:
        """How far from a value an eigenvalue can hide that would change its rank, or the next one's."""
        if limit == 0:  # all values are zero, and so is the operator on the basis
            return 0.0
        products, outward = ritz.starts * ritz.couplings, 1 if rank > 0 else -1
        sides = [outward]
        # An eigenvalue that hides on the inner side, close to this value, would take the next value's rank.
        if abs(rank) < self._ends[0 if rank > 0 else 1]:
            sides.append(-outward)
        return max(hidden.reach(ritz.values, products, index, side, unit=limit) for side in sides)

    def values(self, ritz: Ritz, *, floor: float, asymmetry: float) -> tuple[Eigenvalue, ...]:
        """The results.

        Args:
            ritz: the pairs that were judged last.
            floor: no error is given as less than this many times the largest value, which is rounding.
            asymmetry: of the products, where it is more than rounding; else 0. With it nothing has converged, and no
                error is smaller.
        """
        least = floor * float(np.abs(ritz.values).max(initial=0.0))
        return tuple(
            Eigenvalue(
                rank,
                float(ritz.values[i]),
                residual=max(float(ritz.residuals[i]), least),
                error=max(float(error), least, asymmetry),
                converged=bool(converged) and not asymmetry,
            )
            for (rank, i), error, converged in zip(self.pairs, self.errors, self.converged, strict=True)
        )
