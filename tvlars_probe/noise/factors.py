"""The gradients of n pieces with respect to one tensor, in the form that is cheapest to hold.

A linear layer's or convolution's gradient is a sum of outer products over positions, g_i = Σ_l δ_il·u_ilᵀ, of the
gradient δ at the layer's output and its input u. |g_i|² then is Σ_lm ⟨u_il, u_im⟩·⟨δ_il, δ_im⟩ (Goodfellow 2015, arXiv
1510.01799; for convolutions Rochette et al. 2019, arXiv 1912.06015), which for few positions takes far less than
forming g_i. Which way is cheaper is decided by counting multiplications.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from torch import nn

BLOCK = 1 << 21
"""Most elements that are formed at once beyond what is held: 8 MiB in float32."""

ROW = 1 << 10
"""Elements whose squares are added in their own type; beyond it sums are kept in a wide one."""

MOST_PAIRS = 1 << 23
"""Most pairs of positions of which inner products are formed at once."""


class Factor(Protocol):
    """Gradients g_1, ..., g_n with respect to one tensor."""

    def squares(self) -> Tensor:
        """|g_i|², shape (n,), in a type wide enough."""
        ...

    def along(self, direction: Tensor) -> Tensor:
        """⟨g_i, v⟩ for v of the tensor's shape, shape (n,)."""
        ...

    def gram(self) -> Tensor:
        """⟨g_i, g_j⟩, shape (n, n)."""
        ...

    def few(self, count: int) -> Factor:
        """The gradients of the first ``count`` pieces alone."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the type in which squares are added."""
    return tensor.to(accumulation_dtype(tensor.device))


@dataclass(frozen=True, slots=True, eq=False)
class Formed:
    """Gradients that are held themselves.

    Attributes:
        rows: shape (n, ...), the tensor's shape or its elements in one row.
    """

    rows: Tensor

    def squares(self) -> Tensor:
        flat = self.rows.flatten(1)
        # Norms of rows of a thousand elements, whose squares are added in a wide type.
        even = flat.shape[1] // ROW * ROW
        parts = [flat[:, :even].reshape(len(flat), even // ROW, ROW), flat[:, None, even:]]
        return torch.stack([wide(torch.linalg.vector_norm(part, dim=2)).square().sum(1) for part in parts]).sum(0)

    def along(self, direction: Tensor) -> Tensor:
        return wide(self.rows.flatten(1) @ direction.to(self.rows).flatten())

    def gram(self) -> Tensor:
        flat = self.rows.flatten(1)
        return wide(flat @ flat.T)

    def few(self, count: int) -> Formed:
        return Formed(self.rows[:count])


def _type(tensor: Tensor) -> torch.dtype:
    return accumulation_dtype(tensor.device)


def is_formed(weight: Tensor, outputs: tuple[int, ...], groups: int = 1) -> bool:
    """Whether a layer's gradients are to be formed, rather than held as outer products: whatever takes less arithmetic.

    Args:
        weight: of the layer, whose first dimension counts outputs.
        outputs: shape of the layer's output.
        groups: of a convolution.
    """
    o, k = len(weight) // groups, weight[0].numel()
    positions = math.prod(outputs[1:]) // len(weight)
    # Twice: formed ones also save the pass of `along`, and the sum over samples that a backward pass would take.
    return positions > 1 and 2 * positions * (k + o) >= k * o


class Outer:
    """Sums of outer products over positions: the weight of a linear layer.

    Args:
        inputs: u, shape (n, ..., K).
        outputs: δ, shape (n, ..., O).
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.outputs = inputs, outputs

    def _block(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """u and δ of some pieces, of shapes (n, groups, positions, K) and (n, groups, positions, O)."""
        u, d = self.inputs[first:last], self.outputs[first:last]
        return u.reshape(len(u), 1, -1, u.shape[-1]), d.reshape(len(d), 1, -1, d.shape[-1])

    def squares(self) -> Tensor:
        u, d = self._block(0, 1)
        positions = u.shape[2]
        size = max(BLOCK // (u.numel() + u.shape[1] * positions**2), 1)
        found = []
        for first in range(0, len(self.outputs), size):
            u, d = self._block(first, first + size)
            if positions == 1:
                found.append((_sums(u * u) * _sums(d * d)).sum((1, 2)))
            else:
                found.append(_sums((u @ u.transpose(2, 3)) * (d @ d.transpose(2, 3))).sum((1, 2)))
        return torch.cat(found)

    def formed(self) -> Formed:
        """These gradients themselves."""
        u, d = self._block(0, 1)
        each = u.shape[1] * u.shape[3] * d.shape[3]
        rows = u.new_empty(len(self.outputs), each)
        size = max(BLOCK // (u.numel() + each), 1)
        for first in range(0, len(rows), size):
            u, d = self._block(first, first + size)
            rows[first : first + size] = (d.transpose(2, 3) @ u).flatten(1)
        return Formed(rows)

    def along(self, direction: Tensor) -> Tensor:
        moved = self._through(direction.to(self.inputs))
        return _sums((moved * self.outputs).flatten(1)[:, None])[:, 0]

    def _through(self, weight: Tensor) -> Tensor:
        """What the layer would give with another weight, without bias."""
        return F.linear(self.inputs, weight)

    def few(self, count: int) -> Self:
        some = copy.copy(self)
        some.inputs, some.outputs = self.inputs[:count], self.outputs[:count]
        return some

    def gram(self) -> Tensor:
        u, d = self._block(0, len(self.outputs))
        c, groups, positions, k = u.shape
        o, pairs = d.shape[3], (c * positions) ** 2
        if pairs <= MOST_PAIRS and pairs * (k + o) < c * positions * k * o + c**2 * k * o:
            total = u.new_zeros((c, c), dtype=_type(u))
            for group in range(groups):
                a, b = (x[:, group].reshape(c * positions, -1) for x in (u, d))
                total += wide(((a @ a.T) * (b @ b.T)).reshape(c, positions, c, positions).sum((1, 3)))
            return total
        return self._gram_of_formed(u, d)

    def _gram_of_formed(self, u: Tensor, d: Tensor) -> Tensor:
        """By the gradients themselves, some of their rows at a time."""
        c, total = len(u), u.new_zeros((len(u), len(u)), dtype=_type(u))
        size = max(BLOCK // (c * u.shape[1] * u.shape[3]), 1)
        for part in d.split(size, dim=3):
            formed = (part.transpose(2, 3) @ u).reshape(c, -1)
            total += wide(formed @ formed.T)
        return total


def _sums(values: Tensor) -> Tensor:
    """Sums over the last dimension, of `ROW` elements at once in their own type, then in a wide one."""
    blocks = values.split(ROW, dim=-1)
    return sum((wide(block.sum(-1)) for block in blocks[1:]), start=wide(blocks[0].sum(-1)))


class Convolved(Outer):
    """The weight of a convolution over one or two dimensions: u are the patches that its kernel sees.

    Args:
        layer: the convolution.
        inputs: its input, shape (n, channels, ...).
        outputs: δ, shape (n, channels, ...).
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, outputs: Tensor) -> None:
        # One dimension is two, of which the first has length one.
        self._is_flat = inputs.ndim == 3
        if self._is_flat:
            inputs, outputs = inputs.unsqueeze(2), outputs.unsqueeze(2)
        super().__init__(inputs, outputs)
        assert not isinstance(layer.padding, str)
        self._size, self._stride = self._two(layer.kernel_size, 1), self._two(layer.stride, 1)
        self._dilation, self._padding = self._two(layer.dilation, 1), self._two(layer.padding, 0)
        self._groups = layer.groups

    def _two(self, values: tuple[int, ...], one: int) -> tuple[int, int]:
        first, last = (one, values[0]) if self._is_flat else values
        return first, last

    def _block(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        patches = F.unfold(self.inputs[first:last], self._size, self._dilation, self._padding, self._stride)
        d = self.outputs[first:last]
        u = patches.reshape(len(d), self._groups, -1, patches.shape[-1]).transpose(2, 3)
        return u, d.reshape(len(d), self._groups, d.shape[1] // self._groups, -1).transpose(2, 3)

    def _through(self, weight: Tensor) -> Tensor:
        lifted = weight.unsqueeze(2) if self._is_flat else weight
        return F.conv2d(self.inputs, lifted, None, self._stride, self._padding, self._dilation, self._groups)


class Looked:
    """The weight of an embedding: u picks a row.

    Args:
        indices: of the rows, shape (n, ...).
        outputs: δ, shape (n, ..., D).
        padding: index whose row gets no gradient.
    """

    def __init__(self, indices: Tensor, outputs: Tensor, padding: int | None) -> None:
        self.indices, outputs = indices.reshape(len(indices), -1), outputs.reshape(len(outputs), -1, outputs.shape[-1])
        self.outputs = outputs if padding is None else outputs * (self.indices != padding)[..., None]

    def squares(self) -> Tensor:
        size = max(MOST_PAIRS // self.indices.shape[1] ** 2, 1)
        found = []
        for ids, d in zip(self.indices.split(size), self.outputs.split(size), strict=True):
            same = ids[:, :, None] == ids[:, None, :]
            found.append(_sums((d @ d.transpose(1, 2)) * same).sum(1))
        return torch.cat(found)

    def along(self, direction: Tensor) -> Tensor:
        return _sums((direction.to(self.outputs)[self.indices] * self.outputs).flatten(1)[:, None])[:, 0]

    def few(self, count: int) -> Looked:
        return Looked(self.indices[:count], self.outputs[:count], None)

    def gram(self) -> Tensor:
        ids, d = self.indices, self.outputs
        found = [
            torch.stack([wide(((a @ b.T) * (i[:, None] == j[None, :])).sum()) for j, b in zip(ids, d, strict=True)])
            for i, a in zip(ids, d, strict=True)
        ]
        return torch.stack(found)
