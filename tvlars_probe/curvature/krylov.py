"""Orthonormal bases that stay orthonormal: long vectors in working precision, their inner products in float64.

Lanczos' eigenvalues are as accurate as its basis is orthogonal. A plain float32 inner product of 11 million terms can
be wrong in the fourth digit. So inner products are taken of blocks in working precision, and the blocks' results are
added in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tvlars_probe.errors import NonFiniteLossError
from tvlars_probe.reductions import accumulation_dtype, inner_products, multi_tensor_norms, norm_of_square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.curvature.operators import Operator

BLOCK = 1 << 16
"""Terms summed in working precision before they are added up in float64."""

NOT_FINITE = "the Hessian has entries that aren't finite: there is no curvature to compute"
"""The message of every estimator that meets a product with NaN or infinite entries."""

CHUNK = 8
"""Rows by which a basis grows."""


def norm(v: Tensor) -> float:
    """‖v‖₂, accurate at any length."""
    if v.device.type == "cpu":
        return norm_of_square(inner_products((v,), ((0, 0),))[0], v)
    return multi_tensor_norms([v])[0].item()


def is_symmetric(asymmetry: float, scale: float, dtype: torch.dtype) -> bool:
    """Whether an asymmetry is within rounding: at most the share `rounding` of the scale.

    Args:
        asymmetry: |⟨u, A v⟩ − ⟨A u, v⟩| of unit vectors.
        scale: size of A.
        dtype: type of the products.
    """
    return asymmetry <= rounding(dtype) * scale


def rounding(dtype: torch.dtype) -> float:
    """The share of a product by which rounding may change it, with precision ε: √ε, or 100·ε where that is more."""
    # Products of deep nets are off by some ten to a hundred ε. Where a double backward is wrong, it is so by percents.
    # In half precision a hundred ε are more than √ε.
    eps = torch.finfo(dtype).eps
    return max(math.sqrt(eps), 100 * eps)


def random_vector(operator: Operator, generator: torch.Generator) -> Tensor:
    """A standard normal vector, the same on every device."""
    # Drawn on the CPU and in float32, whatever the operator's type: a seed then names one vector everywhere.
    v = torch.randn(operator.size, generator=generator, dtype=torch.float32)
    return v.to(operator.device, operator.dtype)


def rademacher_vector(operator: Operator, generator: torch.Generator) -> Tensor:
    """A vector of random signs ±1, the same on every device."""
    v = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return v.to(operator.device, operator.dtype).mul_(2).sub_(1)


class Basis:
    """Orthonormal vectors q_0, q_1, ... as rows.

    Args:
        operator: gives the vectors' size, type and device; it is never multiplied by.
    """

    def __init__(self, operator: Operator) -> None:
        # Chunks of rows, so that growing never copies the vectors that are there.
        self._like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        self._n, self._chunks, self._count = operator.size, list[Tensor](), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"vector {index} of {self._count}")
        return self._chunks[index // CHUNK][index % CHUNK]

    def append(self, unit: Tensor, length: float = 1.0) -> None:
        """Add a copy of ``unit``/``length``, which must be orthogonal to the others and of norm 1."""
        if self._count == len(self._chunks) * CHUNK:
            self._chunks.append(self._like.new_empty(CHUNK, self._n))
        self._count += 1  # before indexing, which refuses rows beyond it
        torch.div(unit, length, out=self[self._count - 1])

    def _filled(self, first: int) -> list[tuple[int, Tensor]]:
        """The rows from ``first`` on, one slice per chunk, each with the index of its first row."""
        pieces = []
        for k, chunk in enumerate(self._chunks):
            low, high = max(first - k * CHUNK, 0), min(self._count - k * CHUNK, CHUNK)
            if low < high:
                pieces.append((k * CHUNK + low, chunk[low:high]))
        return pieces

    def coefficients(self, v: Tensor, first: int = 0) -> Tensor:
        """⟨q_i, v⟩ for i >= first, in float64 (float32 on MPS) on the vectors' device."""
        parts = [products(rows, v) for _, rows in self._filled(first)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=accumulation_dtype(v.device), device=v.device)

    def remove(self, v: Tensor, first: int = 0) -> Tensor:
        """Subtract from ``v``, in place, its parts along the q_i with i >= first; return the coefficients ⟨q_i, v⟩."""
        # Classical Gram-Schmidt: matrix products with all rows at once. What rounding leaves is for a second call.
        coefficients = self.coefficients(v, first)
        for start, rows in self._filled(first):
            part = coefficients[start - first : start - first + len(rows)]
            v.addmv_(rows.T, part.to(v.dtype), alpha=-1)
        return coefficients

    def add_direction(self, v: Tensor) -> float:
        """Add what of ``v`` is orthogonal to the basis, normalised; ``v`` is changed in place.

        Returns:
            the norm of the orthogonal part. 0 if it was only rounding, and nothing was added.
        """
        before = norm(v)
        # Twice is enough: where v lies almost in the basis, the first pass leaves rounding along it, which the second
        # takes out.
        self.remove(v)
        self.remove(v)
        left = norm(v)
        if left <= before * 10 * torch.finfo(v.dtype).eps:
            return 0.0
        self.append(v, left)
        return left

    def combine(self, weights: Tensor) -> Tensor:
        """Σ_i weights[k, i]·q_i for each row k of ``weights``, shape (k, n)."""
        weights = weights.to(self._like)
        total = self._like.new_zeros(len(weights), self._n)
        for start, rows in self._filled(0):
            total.addmm_(weights[:, start : start + len(rows)], rows)
        return total

    def replace(self, vectors: Tensor) -> None:
        """Take these rows in place of all others; they must not be views of the basis, which is overwritten."""
        self._count = 0
        for vector in vectors:
            self.append(vector)


class Recurrence:
    """Lanczos' recurrence β_j q_{j+1} = A q_j − Σ_i T_ij q_i, with every new vector made orthogonal to all before it.

    In exact arithmetic T is tridiagonal, and it suffices to subtract the parts along q_j and q_{j−1}. In floating point
    parts along the other vectors come back. They are subtracted too: T is then exact to rounding, and no eigenvalue
    appears twice.

    Only a symmetric A has a symmetric T. ⟨q_i, A q_j⟩ is known from A q_i before A q_j is computed, so that products
    which aren't a Hessian's show at no cost.

    Args:
        operator: A.

    Attributes:
        basis: q_0, q_1, ...
        matvecs: number of products so far.
        beta: β_j, the norm of what is left of A q_j for the newest vector q_j.
        asymmetry: largest norm so far of (⟨q_i, A q_j⟩ − ⟨A q_i, q_j⟩) over i < j, for one j.
    """

    def __init__(self, operator: Operator) -> None:
        self._operator, self.basis = operator, Basis(operator)
        self.matvecs, self._coupled, self.beta, self.asymmetry = 0, 0, math.nan, 0.0
        self._left: Tensor | None = None
        self._couplings = np.zeros(0)

    def start(self, v: Tensor) -> bool:
        """Add what of ``v`` is orthogonal to the basis as the next vector; False if nothing of it is left.

        ``v`` is changed in place, then and by later products.
        """
        self._couplings = np.zeros(0)  # A maps the vectors before to their own span, or there are none
        self._left = v  # the basis holds a copy, so the memory of v serves for all products to come
        return self.basis.add_direction(v) > 0.0

    def start_at_random(self, generator: torch.Generator) -> None:
        """Add a random direction as the next vector."""
        while not self.start(random_vector(self._operator, generator)):
            pass

    def step(self) -> NDArray[np.float64]:
        """Multiply A by the newest vector q_j; return column j of T, shape (j + 1,).

        Raises:
            NonFiniteLossError: the product isn't finite.
        """
        j = len(self.basis) - 1
        w = self._left = self._operator.matvec(self.basis[j], out=self._left)
        self.matvecs += 1
        # First the parts along the vectors that A couples to this one: two, or after a restart all. Then what rounding
        # has left along any. Both are part of A q_j, so T gets their sum.
        column = np.zeros(j + 1)
        column[self._coupled :] = self.basis.remove(w, self._coupled).cpu().numpy()
        column += self.basis.remove(w).cpu().numpy()
        if not np.isfinite(column).all():
            raise NonFiniteLossError(NOT_FINITE)
        expected = np.zeros(j)
        expected[j - len(self._couplings) :] = self._couplings
        self.asymmetry = max(self.asymmetry, float(np.linalg.norm(column[:j] - expected)))
        self._coupled, self.beta = j, norm(w)
        return column

    @property
    def left(self) -> Tensor:
        """β_j q_{j+1}: what is left of the last product."""
        assert self._left is not None
        return self._left

    def ends(self, scale: float) -> bool:
        """Whether A maps the span of the vectors into itself, to rounding; ``scale`` is the size of A."""
        return self.beta <= 10 * torch.finfo(self._operator.dtype).eps * scale

    def go_on(self, couplings: NDArray[np.float64] | None = None) -> None:
        """Add what is left of the last product, divided by β, as the next vector.

        Args:
            couplings: ⟨A q_i, q⟩ of the next vector q with each q_i of a basis that has been replaced; by default q is
                coupled to the last vector alone, by β.
        """
        self.basis.append(self.left, self.beta)
        self._couplings = np.array([self.beta]) if couplings is None else couplings
        self._coupled = self._coupled if couplings is None else 0


def products(rows: Tensor, v: Tensor) -> Tensor:
    """⟨row, v⟩ for each row: blocks in working precision, their sum in float64."""
    dtype = accumulation_dtype(v.device)
    if v.dtype == dtype:
        return rows @ v
    whole = len(v) // BLOCK * BLOCK
    # The rest is shorter than a block, so that it may be widened: a float64 copy of all rows would treble their memory.
    total = rows[:, whole:].to(dtype) @ v[whole:].to(dtype)
    if not whole:
        return total
    if v.device.type == "cpu":  # torch's batched product is three times slower there than one product per block
        for start in range(0, whole, BLOCK):
            total += rows[:, start : start + BLOCK] @ v[start : start + BLOCK]
        return total
    blocks = rows[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    partial = torch.bmm(blocks, v[:whole].view(-1, BLOCK, 1))
    return total + partial.squeeze(-1).sum(0, dtype=dtype)
