"""The spectral norm ‖A‖₂ of matrices, with an error that bounds it from above.

It is what methods that orthogonalise their updates control, such as Muon. The host never waits for the device here,
which rules out the decompositions of `torch.linalg`: they tell the host whether they have converged.

**Small matrices**, of at most `SMALL` rows or columns: the Gram matrix G = AᵀA is squared again and again. Since
λ₁ᵖ ≤ ‖Gᵖ‖_F ≤ √n·λ₁ᵖ for its top eigenvalue λ₁ = ‖A‖₂², the p-th root is λ₁ to two parts in 10⁹ at p = 2³⁰. That is
certain.

**Others**: `STEPS` steps of Lanczos on AᵀA with full reorthogonalisation, from a random start; each is a product with A
and one with Aᵀ. The value is the root of the largest Ritz value θ, which is never above ‖A‖₂. A small residual wouldn't
bound ‖A‖₂ from above: a start that lacks the top singular vector finds another one. But a random start has little of it
by a small chance only. Let u be the eigenvector of an eigenvalue t > θ, q₁ ... q_{k+1} the basis, π_j the orthonormal
polynomials of the process. Then ⟨u, q_{j+1}⟩ = π_j(t)·⟨u, q₁⟩, and no component of the unit vector q_{k+1} is above 1:
so π_k(t) ≤ 1/|⟨u, q₁⟩|. π_k grows without end above θ, which bounds t. The start is g/‖g‖ with g normal, and |⟨u, g⟩|
is below x by a chance of at most x·√(2/π), whatever u is. So the bound fails for one matrix in 1/`CHANCE` at most: more
rarely, since |⟨u, q_{k+1}⟩| is hardly ever near 1. For certain ‖A‖₂ ≤ ‖A‖_F.

Where the top singular value stands apart, the error is a millionth of the value or so. At the edge of a dense spectrum
it is a few hundredths, although the value itself is far closer: that nothing hides beyond an edge is hard to tell. A
start from the last top vector would bring the value closer still, and the error no lower.

Sources: Van Dorsselaer, Hochstenbach and Van der Vorst, 2000, SIAM J. Matrix Anal. 22:837 (what a random start can
hide, given the process); Kuczyński and Woźniakowski, 1992, SIAM J. Matrix Anal. 13:1094 (for all processes).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tvlars_probe.reductions import BLOCK, accumulation_dtype, multi_tensor_norms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = 32
"""Steps of Lanczos: as many products with the matrix, and with its transpose."""

CHANCE = 1e-6
"""The chance at most, for each matrix, that its norm lies above the value plus the error."""

SMALL = 64
"""Up to so many rows or columns the Gram matrix is squared instead."""

_SQUARINGS = 30
_WHOLE = 1 << 24
"""Elements up to which a matrix is held in double precision as a whole: 128 MiB."""

_PIECE = 1 << 22
"""Elements of a larger one that are, on accelerators; on the CPU `BLOCK`, which stays in cache."""

_NEAREST, _POINTS = 1e-13, 1024
"""The least distance above θ at which an eigenvalue is looked for where ‖A‖_F is 1, and how many are tried up to 1."""

_ROUNDING = 16.0
"""Rounding in a step of Lanczos, in units of the type's epsilon and of ‖A‖_F²."""

_SINGLE = 2.0**-23
"""What a number can lose when it is rounded to float32, in parts of it."""


def spectral_norms(
    matrices: Sequence[Tensor],
    seeds: Sequence[int],
    *,
    minus: Sequence[Tensor] | None = None,
    steps: int = STEPS,
    chance: float = CHANCE,
) -> Tensor:
    """‖A‖₂ of every matrix with its error, without waiting for their device.

    Computed in float64 (in float32 on MPS, which has no float64). Matrices of more than `_WHOLE` elements are held in
    that type in pieces only.

    Args:
        matrices: tensors of two dimensions or more, on one device. What has more is flattened from the second dimension
            on, as Muon does; a complex one stands for [[Re, −Im], [Im, Re]], which has its singular values.
        seeds: of each matrix's start, chosen without looking at it: the chance is over them.
        minus: A is the difference ``matrices[i] - minus[i]``, formed in float64.
        steps: of Lanczos.
        chance: at most, of a norm above its value plus its error, from 0 to 1.

    Returns:
        (2, matrices): the values, and errors such that ‖A‖₂ is within value ± error, rounded to float32 or not. NaN
        where an element isn't finite. Both are in the unit of the elements.
    """
    device = matrices[0].device
    dtype = accumulation_dtype(device)
    norms, lowest, highest = torch.zeros((3, len(matrices)), dtype=dtype, device=device).unbind()
    grams: dict[int, Tensor] = {}
    processes: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for i, matrix in enumerate(matrices):
        # One after another: a model isn't held in double precision.
        products = _Products(matrix, None if minus is None else minus[i], dtype)
        norms[i] = products.norm
        if products.size <= SMALL:
            grams[i] = products.gram()
        else:
            start, least = _start(products.size, seeds[i], norms, chance)
            processes[i] = (*lanczos(products.gram_times, start, steps), least)
    if grams:
        for i, top in zip(grams, top_eigenvalues([*grams.values()]).unbind(), strict=True):
            lowest[i] = highest[i] = top
    if processes:
        alphas, betas, least = (torch.stack(some) for some in zip(*processes.values(), strict=True))
        tops = top_eigenvalues([*_tridiagonal(alphas, betas).unbind()])
        hidden = highest_hidden(alphas, betas, tops, least)
        for i, top, high in zip(processes, tops.unbind(), hidden.unbind(), strict=True):
            lowest[i], highest[i] = top, high
    values, finfo = lowest.sqrt(), torch.finfo(dtype)
    # √high − √low, without the digits that this difference loses.
    errors = (highest - lowest) / (values + highest.sqrt()).clamp(min=finfo.tiny)
    return torch.stack([values, errors + values * (SMALL * finfo.eps + _SINGLE)]) * norms


class _Products:
    """Products with a matrix A divided by its Frobenius norm: so the top eigenvalue of AᵀA is at most 1.

    Attributes:
        size: the lesser of the numbers of rows and columns; A has so many columns, or else stands for its transpose.
        norm: ‖A‖_F.
    """

    def __init__(self, matrix: Tensor, minus: Tensor | None, dtype: torch.dtype) -> None:
        tall = _as_tall(matrix)
        self._dtype, self.size = dtype, tall.shape[1]
        most = _WHOLE if tall.numel() <= _WHOLE else BLOCK if tall.device.type == "cpu" else _PIECE
        rows = max(most // max(self.size, 1), 1)
        self._pieces: list[tuple[Tensor, ...]]
        if minus is None:
            self._pieces = [(piece,) for piece in tall.split(rows)]
        else:
            self._pieces = [*zip(tall.split(rows), _as_tall(minus).split(rows), strict=True)]
        if len(self._pieces) == 1:
            self._pieces = [(self._wide(self._pieces[0]),)]
        norms = [multi_tensor_norms([self._wide(piece)])[0] for piece in self._pieces]
        self.norm = multi_tensor_norms([torch.stack(norms)])[0]
        self._scale = torch.where(self.norm > 0, self.norm, 1.0)

    def _wide(self, piece: tuple[Tensor, ...]) -> Tensor:
        wide = piece[0].to(self._dtype)
        return wide if len(piece) == 1 else wide - piece[1].to(self._dtype)

    def gram_times(self, vector: Tensor) -> Tensor:
        """AᵀA·vector."""
        total = torch.zeros_like(vector)
        for piece in self._pieces:
            wide = self._wide(piece)
            total += wide.T @ ((wide @ vector) / self._scale) / self._scale
        return total

    def gram(self) -> Tensor:
        """AᵀA."""
        total = self.norm.new_zeros(self.size, self.size)
        for piece in self._pieces:
            wide = self._wide(piece) / self._scale
            total += wide.T @ wide
        return total


def _as_tall(tensor: Tensor) -> Tensor:
    """The tensor as a real matrix that has at least as many rows as columns."""
    tensor = tensor.detach()
    matrix = (tensor.to_dense() if tensor.is_sparse else tensor).flatten(1)
    if matrix.is_complex():
        matrix = torch.cat([torch.cat([matrix.real, -matrix.imag], 1), torch.cat([matrix.imag, matrix.real], 1)])
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _start(size: int, seed: int, like: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """A random unit vector, and what its component along any one direction is at least, but for a chance."""
    generator = torch.Generator(like.device)
    generator.manual_seed(seed)
    start = torch.empty(size, dtype=like.dtype, device=like.device).normal_(generator=generator)
    norm = torch.linalg.vector_norm(start)
    return start / norm, chance * math.sqrt(math.pi / 2) / norm


def top_eigenvalues(matrices: Sequence[Tensor]) -> Tensor:
    """The largest eigenvalue of positive semidefinite matrices of at most `SMALL` columns, to two parts in 10⁹.

    Args:
        matrices: on one device, in the type of the result.

    Returns:
        (matrices,): never below the eigenvalue but for rounding.
    """
    width = max(1, *(len(m) for m in matrices))
    # Rows and columns of zeros add eigenvalues of zero.
    powers = torch.stack([nn.functional.pad(m, (0, width - len(m)) * 2) for m in matrices])
    logarithms, power = torch.zeros_like(powers[:, 0, 0]), 1.0
    for _ in range(_SQUARINGS):
        norms = torch.linalg.vector_norm(powers, dim=(1, 2))
        logarithms += norms.log() / power
        # A squaring doubles the relative error so far, of which the root takes half each time.
        powers = powers / torch.where(norms > 0, norms, 1.0)[:, None, None]
        powers, power = powers @ powers, 2 * power
    logarithms += torch.linalg.vector_norm(powers, dim=(1, 2)).log() / power
    return logarithms.exp()


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrix that Lanczos makes of a symmetric one, with full reorthogonalisation.

    Args:
        product: multiplies the symmetric matrix, of norm 1 at most, by a vector.
        start: of norm 1, (n,).
        steps: k, below n.

    Returns:
        its diagonal α and its off-diagonal β, (k,) each; the last β leads out of the space found.
    """
    basis = start.new_zeros(steps + 1, len(start))
    basis[0] = start
    alphas, betas = start.new_zeros(2, steps).unbind()
    finfo = torch.finfo(start.dtype)
    for k in range(steps):
        vector = product(basis[k])
        alphas[k] = torch.dot(vector, basis[k])
        for _ in range(2):
            vector -= basis[: k + 1].T @ (basis[: k + 1] @ vector)
        beta = torch.linalg.vector_norm(vector)
        # What rounding leaves where the space is invariant isn't orthogonal to it, and would be found twice: there the
        # process ends, with vectors of zeros.
        betas[k] = torch.where(beta <= _ROUNDING * finfo.eps, 0.0, beta)
        basis[k + 1] = vector * (betas[k] / beta.square().clamp(min=finfo.tiny))
    return alphas, betas


def _tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    inner = betas[:, :-1]
    return alphas.diag_embed() + inner.diag_embed(1) + inner.diag_embed(-1)


def highest_hidden(alphas: Tensor, betas: Tensor, tops: Tensor, least: Tensor) -> Tensor:
    """What the top eigenvalue is at most, after Lanczos on a positive semidefinite matrix of trace 1.

    Args:
        alphas: the diagonals, (matrices, k).
        betas: the off-diagonals, (matrices, k).
        tops: the largest Ritz values θ, (matrices,).
        least: what the start's component along the top eigenvector is at least, (matrices,).

    Returns:
        (matrices,): 3 % further above θ than it need be, at most.
    """
    finfo = torch.finfo(tops.dtype)
    distances = torch.logspace(math.log10(_NEAREST), 0, _POINTS, dtype=tops.dtype, device=tops.device)
    places = tops[:, None] + distances
    # π_k(t) = Π d_j/β_j, where d_j are the pivots of t − T. Above the Ritz values, and only there, all are positive:
    # elsewhere a logarithm is NaN, which excludes nothing.
    pivots = places - alphas[:, :1]
    growth = pivots.log() - betas[:, :1].clamp(min=finfo.tiny).log()
    for k in range(1, alphas.shape[1]):
        pivots = places - alphas[:, k : k + 1] - betas[:, k - 1 : k].square() / pivots
        growth += pivots.log() - betas[:, k : k + 1].clamp(min=finfo.tiny).log()
    # Rounding adds up to its size over t − θ to a component: each of the two sources may have half of it.
    excluded = (growth > math.log(2) - least.log()[:, None]) & (distances > 2 * _ROUNDING * finfo.eps / least[:, None])
    return torch.where(excluded, places, tops[:, None].clamp(min=1.0)).amin(dim=1)
