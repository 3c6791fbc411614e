"""How far beyond the Ritz values an eigenvalue can still hide, judged by the random part of Lanczos' start.

A small residual says that an eigenvalue is near a Ritz value. It doesn't say that the Ritz value is the top one: a
start that is nearly orthogonal to the top eigenvector finds another eigenvalue first. The Krylov basis itself tells
how unlikely that is (Van Dorsselaer, Hochstenbach and Van der Vorst, 2000, SIAM J. Matrix Anal. 22:837).

Let u be the unit eigenvector of an eigenvalue t, and (θ_i, x_i) the Ritz pairs. Then A x_i = θ_i x_i + r_i q with the
next vector q of the basis, and ⟨u, x_i⟩ (t − θ_i) = r_i ⟨u, q⟩. For a vector z = Σ s_i x_i of the basis it follows that

    ⟨u, z⟩ = ⟨u, q⟩ · Σ s_i r_i / (t − θ_i).

If z is the start, and |⟨u, q⟩| <= 1, an eigenvalue t needs |⟨u, z⟩| <= |Σ s_i r_i / (t − θ_i)|, its *share*. A share
below that of a random vector, but for a small chance, excludes t. A restart of the basis ends a factor: the sum goes
on with z = q, and the factors are multiplied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CHANCE = 0.01
"""Chance at most that a random start has less of an eigenvector than is supposed."""

POINTS = 2.0 ** np.arange(-60, 61)
"""Distances that are tried, in units of the distance that counts."""


class HiddenShares:
    """The share of the start that an eigenvector can have, as a function of its eigenvalue.

    Args:
        size: dimensions of the operator.
        random: norm of the random part of the start, which has norm 1.
    """

    def __init__(self, size: int, random: float = 1.0) -> None:
        # A component of a random unit vector is nearly normal with variance 1/n: it lies within ±x of zero with a
        # chance of at most x·√(2n/π), whatever fixed vector is added to it.
        self._least = random * CHANCE * math.sqrt(math.pi / (2 * size))
        self._ended: list[tuple[Floats, Floats]] = []

    def end_factor(self, values: Floats, products: Floats) -> None:
        """Keep the factor of a basis that is restarted: its Ritz values θ_i, and s_i·r_i."""
        self._ended.append((values, products))

    def reach(self, values: Floats, products: Floats, index: int, sign: int, unit: float) -> float:
        """The distance from Ritz value ``index`` within which an eigenvalue can hide.

        Args:
            values: θ_i, ascending, shape (k,).
            products: s_i·r_i, shape (k,).
            index: of the Ritz value.
            sign: 1 looks above it, −1 below it.
            unit: the distance that counts; the result is a power of two times it.

        Returns:
            the smallest distance tried at which the eigenvector's share is excluded; infinite if it is at none of the
            distances up to half way to the next Ritz value.
        """
        neighbour = index + sign
        room = abs(values[neighbour] - values[index]) / 2 if 0 <= neighbour < len(values) else math.inf
        distances = unit * POINTS
        shares = self.share(values[index] + sign * distances, values, products)
        excluded = (shares <= math.log(self._least)) & (distances <= room)
        found = float(distances[excluded.argmax()]) if excluded.any() else math.inf
        # What hides up to half way to a neighbour that close is no further off than that, and within what counts.
        return min(found, room) if room <= unit else found

    def share(self, points: Floats, values: Floats, products: Floats) -> Floats:
        """Logarithm of the largest share of the start that an eigenvector can have, for eigenvalues at ``points``."""
        shares = np.zeros(len(points))
        # Zero where the span of the basis is invariant: then its logarithm is −∞. Infinite at a Ritz value; at one that
        # isn't coupled 0/0, which excludes nothing.
        with np.errstate(divide="ignore", invalid="ignore"):
            for theta, weights in [*self._ended, (values, products)]:
                shares += np.log(np.abs((weights / (points[:, None] - theta)).sum(axis=1)))
        return shares
