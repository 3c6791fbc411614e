"""Inner products and norms of tensors, accurate at any size.

torch's own float32 reductions lose digits as tensors grow. On a CPU, ``torch.norm`` is 4e-5 off at 2.4 million random
elements, and as much at 130,000 equal ones, such as those of LAMB's first direction. At 11 million elements
``torch.dot`` is 1e-5 off if they are random and 5e-4 off if they are equal. Trust ratios and eigenvalues are quotients
of such numbers, so this module computes them in another way: rows of 1,024 elements are reduced in float32, and the
rows are added in double precision. Large tensors cost no memory but one number per row.

Squares leave a type's range long before norms do: those of float16 beyond 255, of float32 beyond 1.8e19, of float64
beyond 1.3e154, and below the inverses. So they are formed in a wider type, and where there is none, of scaled elements.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tensors = tuple[Tensor, ...] | list[Tensor]
"""The collections that torch's multi-tensor functions take and return."""

BLOCK = 1 << 18
"""Elements per block where tensors are worked on piece by piece: 1 MiB in float32, which stays in cache."""

_ROW = 1 << 10
"""Elements whose sum is taken in float32; beyond it sums are kept in double precision."""

_ROWS_AT_ONCE = 1 << 12
_PLAIN = (Tensor, torch.nn.Parameter)
"""Types whose memory NumPy can read; a subclass may hold its elements in a way of its own."""

_SMALL = 1 << 11
"""Up to this many elements a call of torch costs more than its arithmetic."""

_FEW_ROWS = 128
"""Up to this many rows the elementwise product stays in cache, and costs less than the start of a larger kernel."""

# A float32 sum of squares outside this range has under- or overflowed while the norm itself is representable.
_SAFE_LOW, _SAFE_HIGH = 1e-30, 1e37

# The same for a sum of squares in double precision.
_LEAST_SQUARE, _MOST_SQUARE = 1e-280, 1e300

_PIECE = 1 << 22
"""Elements of which an accelerator forms products in double precision at once: 32 MiB."""

# By the type in which an accelerator adds squares: the highest element up to which they don't overflow, and the power
# of two by which larger elements are divided, and those below its inverse are multiplied.
_SCALES = {torch.float64: (2.0**400, 2.0**600), torch.float32: (2.0**50, 2.0**90)}


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


def dense_and_real(tensor: Tensor) -> Tensor:
    """The elements of a sparse or complex tensor as dense, real ones.

    Norms stay the same, and inner products become their real part.
    """
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def inner_products(vectors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Inner products ⟨vectors[i], vectors[j]⟩ for each (i, j) in ``pairs``, of 1-D tensors of equal length.

    The tensors must be on the CPU, where ``Tensor.item`` is free. At any length the error of a squared norm is below
    1e-6 of its value, in float32 and in bfloat16. The error of an inner product is below 1e-6 of the product of norms.
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
    """Yield the `inner_products` of each of many tuples of CPU tensors.

    The first request computes those of all small tensors together, in a few calls, if they have one dtype. Those of a
    larger tensor are computed when they are asked for: an update that follows at once finds the tensor in cache.
    """
    # Empty tensors stay out: of an empty segment np.add.reduceat returns an element of the next one, not 0.
    small = [i for i, vectors in enumerate(tuples) if 0 < vectors[0].numel() <= _SMALL]
    products: dict[int, Sequence[float]] = {}
    kinds = {(type(t) in _PLAIN, t.dtype, t.device) for i in small for t in tuples[i]}
    if len(small) > 1 and len(kinds) == 1 and all(is_plain for is_plain, *_ in kinds):
        # double() first: NumPy has no bfloat16, and neither squares nor sums of float32 numbers overflow in float64.
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
        # A reduction in half precision would keep two or three digits of each row.
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
        # Zero and NaN fail this test as well: an exact zero is computed twice, and NaN comes back as NaN.
        if not _SAFE_LOW < abs(value) < _SAFE_HIGH:
            value = torch.dot(left.double(), right.double()).item()
        values.append(value)
    return values


def _self_product(v: Tensor) -> float:
    # vector_norm reads v once and writes a number per row; dot squares the rows' norms and adds them. They are a new
    # tensor, which torch aligns, so that dot rounds alike wherever v lies.
    norms = torch.linalg.vector_norm(v.view(-1, _ROW), dim=1).double()
    return torch.dot(norms, norms).item()


def _cross_product(left: Tensor, right: Tensor) -> float:
    """⟨left, right⟩, row by row.

    torch has no such reduction by name: ``linalg.vecdot`` writes the elementwise product to memory first. But the
    backward pass of group normalisation contains it. The gradient of the scale is Σ ∂y·(x − mean)/std in each channel:
    the wanted product, if each row is a channel, the mean is 0 and 1/std is 1.
    """
    rows = left.numel() // _ROW
    if rows <= _FEW_ROWS:
        return torch.mul(left, right).sum().item()
    zero, one = left.new_zeros(1, 1), left.new_ones(1, 1)
    kernel = torch.ops.aten.native_group_norm_backward
    shaped = left.view(1, rows, _ROW), right.view(1, rows, _ROW)
    # One sample, `rows` channels, one group; the mask asks for the scale's gradient alone. It doesn't depend on the
    # scale, without which torch 2.6 raises here.
    products: Tensor = kernel(*shaped, zero, one, left.new_ones(rows), 1, rows, _ROW, 1, [False, True, False])[1]
    return products.sum(dtype=torch.float64).item()


def squared_norm(tensor: Tensor) -> float:
    """‖tensor‖₂² of a CPU tensor, as accurate as `inner_products`."""
    return inner_products(flat_views(tensor), ((0, 0),))[0]


def norm_of_square(square: float, tensor: Tensor) -> float:
    """‖tensor‖₂ of a CPU tensor whose ‖tensor‖₂² has been computed.

    Where the square has left the range of double precision, which only float64 elements can make it do, the norm is
    that of the scaled tensor, times the scale. Finite elements have a finite norm: it is the largest float64 at most.
    """
    if tensor.dtype != torch.float64 or _LEAST_SQUARE < square < _MOST_SQUARE:
        return math.sqrt(square)
    largest = tensor.abs().max().item() if tensor.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    return min(largest * math.sqrt(squared_norm(tensor / largest)), sys.float_info.max)


def scaled_squares(norms: Tensor, *, wide: bool) -> Tensor:
    """Squares of norms, to be added up before `norms_of_squares` takes their roots.

    Args:
        norms: norms of any shape, in the type of `accumulation_dtype`.
        wide: whether a square may leave the type's range: then those of the norms times a power of two, and of the
            norms divided by it, come with them.

    Returns:
        a tensor of shape (1, *norms.shape), or (3, *norms.shape) where ``wide``.
    """
    _, power = _SCALES[norms.dtype]
    return torch.stack([(norms * scale).square() for scale in ((1.0, 1 / power, power) if wide else (1.0,))])


def norms_of_squares(sums: Tensor) -> Tensor:
    """The roots of sums of `scaled_squares`, of the norms' shape: where the plain sum is out of range, of a scaled one.

    The host waits for no device.
    """
    plain, *scaled = sums.unbind()
    if not scaled:
        return plain.sqrt()
    highest, power = _SCALES[sums.dtype]
    down, up = scaled
    roots = torch.where(plain > highest**2, down.sqrt() * power, plain.sqrt())
    return torch.where(plain < highest**-2, up.sqrt() / power, roots)


def is_capturing() -> bool:
    """Whether the current stream is being captured in a CUDA graph."""
    # Without a driver the second question raises, and nothing is captured before CUDA is initialised.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The floating-point type in which ``device`` keeps sums: float64; float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def multi_tensor_norms(tensors: Tensors) -> Tensor:
    """‖t‖₂ of every tensor as one vector on their device, by a multi-tensor kernel, without waiting for the device."""
    dtype = accumulation_dtype(tensors[0].device)
    highest, _ = _SCALES[dtype]
    is_wide = [torch.finfo(t.dtype).max > highest and t.numel() > 0 for t in tensors]
    plain = [t for t, wide in zip(tensors, is_wide, strict=True) if not wide]
    wide = [t for t, wide in zip(tensors, is_wide, strict=True) if wide]
    of_plain = iter(torch._foreach_norm(plain, 2, dtype=dtype) if plain else ())
    of_wide = iter(_scaled_norms(wide, dtype) if wide else ())
    return _gathered([next(of_wide if wide else of_plain) for wide in is_wide], tensors[0].device)


def _scaled_norms(tensors: Tensors, dtype: torch.dtype) -> list[Tensor]:
    """‖t‖₂ of tensors whose squares ``dtype`` may not hold, as 0-dim tensors of that type.

    The elements are scaled by a power of two. In the ordinary range it is 1, and the norm is to the bit that of t. The
    host, which would have to wait for the largest element, doesn't choose it.
    """
    highest, power = _SCALES[dtype]
    norms = []
    largest = torch._foreach_norm(tensors, math.inf, dtype=dtype)
    down, up, one = (torch.full_like(largest[0], value) for value in (1 / power, power, 1.0))
    scales = [torch.where(x > highest, down.to(x), torch.where(x < 1 / highest, up.to(x), one.to(x))) for x in largest]
    scaled = torch._foreach_mul(tensors, [scale.to(t.dtype) for scale, t in zip(scales, tensors, strict=True)])
    for norm, scale, x in zip(torch._foreach_norm(scaled, 2, dtype=dtype), scales, largest, strict=True):
        true = norm / scale
        norms.append(torch.where(x.isfinite(), true.clamp(max=torch.finfo(dtype).max), true))
    return norms


def multi_tensor_dots(left: Tensors, right: Tensors) -> Tensor:
    """⟨a, b⟩ of every pair as one vector on their device, without waiting for the device."""
    dtype = accumulation_dtype(left[0].device)
    dots = []
    for a, b in zip(left, right, strict=True):
        # Products in the tensors' own type would be rounded to it before they are added, or leave its range.
        if a.numel() <= _PIECE:
            dots.append(a.to(dtype, copy=True).mul_(b).sum())
            continue
        pieces = zip(*(torch.split(v, _PIECE) for v in flat_views(a, b)), strict=True)
        dots.append(torch.stack([x.to(dtype, copy=True).mul_(y).sum() for x, y in pieces]).sum())
    return _gathered(dots, left[0].device)


def _gathered(scalars: Tensors, device: torch.device) -> Tensor:
    """0-dim tensors as one vector on ``device``; they may come from several devices, over which a model is spread."""
    dtype = accumulation_dtype(device)
    return torch.stack([scalar.to(device, dtype, non_blocking=True) for scalar in scalars])


def difference_norm(left: Tensor, right: Tensor) -> float:
    """‖left − right‖₂ of CPU tensors, by differences of one block at a time."""
    a, b = flat_views(left, right)
    # In half precision the differences would be rounded to it: they are formed in float32.
    scratch = torch.empty(min(BLOCK, a.numel()), dtype=torch.promote_types(a.dtype, torch.float32))
    total = 0.0
    for x, y in zip(torch.split(a, BLOCK), torch.split(b, BLOCK), strict=True):
        difference = scratch[: x.numel()].copy_(x).sub_(y)
        total += inner_products((difference,), ((0, 0),))[0]
    if scratch.dtype != torch.float64 or _LEAST_SQUARE < total < _MOST_SQUARE:
        return math.sqrt(total)
    return norm_of_square(total, a - b)
