"""The two figures of a piece's gradient that are kept: its squared norm, and a check sum.

They are read of each tensor in each backward pass. So the usual case, a plain tensor on the CPU, takes as few calls as
it can, and on an accelerator the host waits for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tvlars_probe.reductions import dense_and_real, multi_tensor_dots, multi_tensor_norms, squared_norm

_ELEMENTS = 64
"""Elements of a gradient that its check sum is made of, at most."""

_SHORT, _ROW, _LEAST, _MOST = 1 << 14, 1 << 11, 1e-30, 1e37
"""Elements whose squares one call may add up, those of a row of longer tensors, and the range of a right square.

In single precision the sum of many squares drifts. So long tensors are summed by rows: where all elements are equal,
and so round alike, the error stays below 1e-5, and below 1e-6 for gradients whose elements differ.
"""

_PLAIN = (torch.float32, torch.float64)


class GradientFigures:
    """Reads the figures of gradients. What check sums need is made once for each number and kind of elements."""

    def __init__(self) -> None:
        self._signs: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self._places: dict[tuple[torch.Size, torch.device], tuple[Tensor, ...]] = {}

    @staticmethod
    def square(grad: Tensor) -> float | Tensor:
        """|g|², a tensor where g is on an accelerator."""
        grad = grad.coalesce().values() if grad.is_sparse else grad
        grad = dense_and_real(grad)
        if grad.device.type != "cpu":
            return multi_tensor_norms([grad])[0].square()
        if grad.dtype in _PLAIN and grad.is_contiguous():
            # A call costs more than the sum of most tensors: this takes half the time of `squared_norm` on ResNet-18.
            # It isn't right beyond the range of the type.
            square = _square_of_plain(grad.view(-1))
            if _LEAST < square < _MOST:
                return square
        return squared_norm(grad)

    def check_sum(self, grad: Tensor) -> float | Tensor:
        """Σ ±g over some elements, always the same ones: linear in g, and seldom near zero. Of a sparse g it is 0."""
        if grad.is_sparse or not grad.numel():
            return 0.0
        elements = self._some(dense_and_real(grad) if grad.is_complex() else grad)
        signs = self._signs_of(elements)
        if elements.device.type == "cpu":
            return torch.dot(elements if elements.dtype == signs.dtype else elements.to(signs.dtype), signs).item()
        return multi_tensor_dots([elements], [signs])[0]

    def _signs_of(self, elements: Tensor) -> Tensor:
        """A sign for each element, the same for any tensor of so many; in single precision at least."""
        key = (elements.shape[0], elements.device, elements.dtype)
        if key not in self._signs:
            draw = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (elements.shape[0],), generator=draw) * 2 - 1
            self._signs[key] = signs.to(elements.device, torch.promote_types(elements.dtype, torch.float32))
        return self._signs[key]

    def _some(self, grad: Tensor) -> Tensor:
        """At most `_ELEMENTS` elements, spread evenly, by their logical place whatever the tensor's memory layout."""
        size = grad.numel()
        stride = -(-size // _ELEMENTS)
        if grad.is_contiguous():
            return grad.as_strided((-(-size // stride),), (stride,))  # view(-1)[::stride] in one call
        key = (grad.shape, grad.device)
        if key not in self._places:
            places = torch.arange(0, size, stride, device=grad.device)
            self._places[key] = torch.unravel_index(places, grad.shape)
        return grad[self._places[key]]


def _square_of_plain(grad: Tensor) -> float:
    """|g|² of a vector in as few calls as its length allows."""
    size = grad.shape[0]
    if size <= _SHORT:
        return torch.dot(grad, grad).item()
    rows = size // _ROW
    rest = grad[rows * _ROW :]
    norms = torch.linalg.vector_norm(grad[: rows * _ROW].view(rows, _ROW), dim=1)
    return _square_of_plain(norms) + torch.dot(rest, rest).item()
