"""Inner products and norms of tensors, accurate at any size.

torch's own float32 reductions lose digits as tensors grow: on a CPU ``torch.norm`` is 4e-5 off at 2.4 million
elements, ``torch.dot`` 1e-4 off at 11 million, and 5e-5 off already at 130,000 if all elements are alike, as those of
LAMB's first direction are. Trust ratios and eigenvalues are quotients of such numbers, so they are computed here
instead: rows of 1,024 elements in float32, the rows in double precision. Nothing is written but a number per row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tensors = tuple[Tensor, ...] | list[Tensor]
"""What torch's multi-tensor functions take and return."""

BLOCK = 1 << 18
"""Elements per block where tensors are worked on piece by piece: 1 MiB in float32, so that a piece stays in cache."""

_ROW = 1 << 10
_ROWS_AT_ONCE = 1 << 12
_PLAIN = (Tensor, torch.nn.Parameter)
"""What NumPy can look into; subclasses have their own ways."""

_SMALL = 1 << 11
"""Elements up to which a call costs more than what it does."""

_FEW_ROWS = 128  # up to here the elementwise product stays in cache, and costs less than a larger kernel's start

# A float32 sum of squares outside this range has under- or overflowed while the norm itself is representable.
_SAFE_LOW, _SAFE_HIGH = 1e-30, 1e37


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory in an order that `flat_views` can follow without a copy."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def flat_views(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return one-dimensional views (copies where no view exists) that list the elements in one common order."""
    if all(t.is_contiguous() for t in tensors):
        return tuple(t.view(-1) for t in tensors)
    if all(t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        return tuple(t.permute(0, 2, 3, 1).reshape(-1) for t in tensors)
    return tuple(t.reshape(-1) for t in tensors)


def inner_products(vectors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Inner products ⟨vectors[i], vectors[j]⟩ for each (i, j) in ``pairs``, of 1-D tensors of equal length.

    The tensors must be where ``Tensor.item`` is free: on the CPU. The relative error of a squared norm is below 1e-6
    in float32 and bfloat16 at any length; an inner product's error is that small relative to the product of norms.
    """
    size, most = vectors[0].numel(), _ROW * _ROWS_AT_ONCE
    if size <= most:
        return _block_products(vectors, pairs)
    totals = [0.0] * len(pairs)
    for start in range(0, size, most):
        values = _block_products([v[start : start + most] for v in vectors], pairs)
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    return totals


def inner_products_of_each(
    tuples: Sequence[tuple[Tensor, ...]], pairs: Sequence[tuple[int, int]]
) -> Iterator[Sequence[float]]:
    """`inner_products` of many tuples of CPU tensors: the small ones (of one dtype) together in a few calls at first,
    each larger one when it is asked for, so that it is in cache for what comes next.
    """
    small = [i for i, vectors in enumerate(tuples) if 0 < vectors[0].numel() <= _SMALL]
    products: dict[int, Sequence[float]] = {}
    kinds = {(type(t) in _PLAIN, t.dtype, t.device) for i in small for t in tuples[i]}
    if len(small) > 1 and len(kinds) == 1 and all(is_plain for is_plain, *_ in kinds):
        together = [torch.cat(flats).double().numpy() for flats in zip(*(tuples[i] for i in small), strict=True)]
        starts = np.cumsum([0, *(tuples[i][0].numel() for i in small[:-1])])
        with np.errstate(all="ignore"):  # what is not finite is the caller's to find
            sums = [np.add.reduceat(together[a] * together[b], starts).tolist() for a, b in pairs]
        products = dict(zip(small, zip(*sums, strict=True), strict=True))
    for i, vectors in enumerate(tuples):
        yield products[i] if i in products else inner_products(vectors, pairs)


def _block_products(vectors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[float]:
    dtypes = {v.dtype for v in vectors}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        vectors = [v.to(wide) for v in vectors]
    size = vectors[0].numel()
    whole = size // _ROW * _ROW
    values = []
    for i, j in pairs:
        left, right = vectors[i], vectors[j]
        value = 0.0
        if whole:
            value = _self_product(left[:whole]) if i == j else _cross_product(left[:whole], right[:whole])
        if whole < size:
            # Not torch.dot, whose rounding depends on the address: gradients under DDP move when a run is resumed.
            value += torch.mul(left[whole:], right[whole:]).sum().item()
        if not _SAFE_LOW < abs(value) < _SAFE_HIGH:
            value = torch.dot(left.double(), right.double()).item()
        values.append(value)
    return values


def _self_product(v: Tensor) -> float:
    norms = torch.linalg.vector_norm(v.view(-1, _ROW), dim=1).double()
    return torch.dot(norms, norms).item()


def _cross_product(left: Tensor, right: Tensor) -> float:
    """⟨left, right⟩, row by row.

    torch has no such reduction under its own name (``linalg.vecdot`` writes the elementwise product to memory first).
    But it is what a normalisation layer computes for the gradient of its scale: Σ ∂y·(x − 0)·1 in each channel.
    """
    rows = left.numel() // _ROW
    if rows <= _FEW_ROWS:
        return torch.mul(left, right).sum().item()
    zero, one = left.new_zeros(1, 1), left.new_ones(1, 1)
    kernel = torch.ops.aten.native_group_norm_backward
    shaped = left.view(1, rows, _ROW), right.view(1, rows, _ROW)
    products: Tensor = kernel(*shaped, zero, one, None, 1, rows, _ROW, 1, [False, True, False])[1]
    return products.sum(dtype=torch.float64).item()


def squared_norm(tensor: Tensor) -> float:
    """‖tensor‖₂² of a CPU tensor, as accurate as `inner_products`."""
    return inner_products(flat_views(tensor), ((0, 0),))[0]


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type that sums are kept in on ``device`` (Apple's MPS has no float64)."""
    return torch.float32 if device.type == "mps" else torch.float64


def multi_tensor_norms(tensors: Tensors) -> Tensor:
    """‖t‖₂ of every tensor as one vector on their device, multi-tensor, without waiting for the device."""
    dtype = accumulation_dtype(tensors[0].device)
    norms = torch._foreach_norm(tensors, 2, dtype=dtype)
    return _gathered(norms, tensors[0].device)


def multi_tensor_dots(left: Tensors, right: Tensors) -> Tensor:
    """⟨a, b⟩ of every pair as one vector on their device, without waiting for the device."""
    dtype = accumulation_dtype(left[0].device)
    dots = []
    for a, b in zip(left, right, strict=True):
        narrow = a.dtype in (torch.bfloat16, torch.float16)
        products = torch.mul(a.float(), b.float()) if narrow else torch.mul(a, b)
        dots.append(products.sum(dtype=dtype))
    return _gathered(dots, left[0].device)


def _gathered(scalars: Tensors, device: torch.device) -> Tensor:
    """0-dim tensors, of a model that may be spread over devices, as one vector on the first of them."""
    dtype = accumulation_dtype(device)
    return torch.stack([scalar.to(device, dtype, non_blocking=True) for scalar in scalars])


def difference_norm(left: Tensor, right: Tensor) -> float:
    """‖left − right‖₂ of CPU tensors, without a tensor of their size."""
    a, b = flat_views(left, right)
    scratch = torch.empty(min(BLOCK, a.numel()), dtype=torch.promote_types(a.dtype, torch.float32))
    total = 0.0
    for x, y in zip(torch.split(a, BLOCK), torch.split(b, BLOCK), strict=True):
        difference = scratch[: x.numel()].copy_(x).sub_(y)
        total += inner_products((difference,), ((0, 0),))[0]
    return math.sqrt(total)
