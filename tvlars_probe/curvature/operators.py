"""Symmetric operators, known only by their products with vectors."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tvlars_probe.curvature.graphs import SavedBytes, custom_functions
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tvlars_probe.curvature.objective import Objective


class Operator(Protocol):
    """A symmetric n × n operator.

    Attributes:
        size: n.
        dtype: of its vectors.
        device: of its vectors.
    """

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """A·v for a vector of shape (n,), written to ``out``, or to a new tensor if there is none."""
        ...


class DenseOperator:
    """A symmetric matrix, for tests and examples."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mv(self.matrix, v, out=out)


class DiagonalOperator:
    """A diagonal matrix, of any size: its eigenvalues are known without computing anything."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal
        self.size, self.dtype, self.device = len(diagonal), diagonal.dtype, diagonal.device

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(self.diagonal, v, out=out)


def dense(operator: Operator, report: Callable[[int], None] = lambda _: None) -> Tensor:
    """The n × n matrix of a small operator, by n products, in float64 on the CPU: as symmetric as the products are.

    Args:
        operator: A.
        report: called with the number of products made so far.
    """
    unit = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    columns = []
    for i in range(operator.size):
        unit.zero_()[i] = 1.0
        columns.append(operator.matvec(unit).cpu().double())
        report(i + 1)
    return torch.stack(columns, dim=1)


def asymmetry_of(matrix: Tensor) -> float:
    """The largest |⟨e_i, A e_j⟩ − ⟨A e_i, e_j⟩| of a matrix."""
    return (matrix - matrix.T).abs().max().item() if matrix.numel() else 0.0


class ScaledOperator:
    """S·(A + diag(c))·S with a diagonal S >= 0.

    Args:
        operator: A.
        scale: diagonal of S, shape (n,).
        shift: c, shape (n,); zero by default.
    """

    def __init__(self, operator: Operator, scale: Tensor, shift: Tensor | None = None) -> None:
        self.operator, self.scale, self.shift = operator, scale, shift
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._scaled = torch.empty_like(scale)

    def over(self, operator: Operator) -> ScaledOperator:
        """The same scaling of another operator, in that one's type."""
        shift = None if self.shift is None else self.shift.to(operator.dtype)
        return ScaledOperator(operator, self.scale.to(operator.dtype), shift)

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        scaled = torch.mul(self.scale, v, out=self._scaled)
        product = self.operator.matvec(scaled, out)
        if self.shift is not None:
            product.addcmul_(self.shift, scaled)
        return product.mul_(self.scale)


class Derivatives(Protocol):
    """The derivatives of a batch's share of f, with graphs that can be differentiated once more."""

    @property
    def value(self) -> Tensor:
        """What is differentiated first, with its graph."""
        ...

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        """By parameter a tensor with its graph; None where `value` doesn't depend on it."""
        ...

    def chosen(self, used: list[bool]) -> Derivatives:
        """The same for the parameters that are used."""
        ...

    def product(self, params: list[Tensor], parts: list[Tensor], *, keep: bool) -> tuple[Tensor, ...] | None:
        """The matrix times a vector, both by parameter; None for zero. Without ``keep`` the graphs are used up."""
        ...

    def slopes(self, params: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The share's gradient by parameter."""
        ...


@dataclass(frozen=True)
class _Gradient:
    """A gradient, of which the Hessian is the derivative."""

    value: Tensor
    gradients: tuple[Tensor | None, ...]

    def chosen(self, used: list[bool]) -> _Gradient:
        return _Gradient(self.value, tuple(g for g, u in zip(self.gradients, used, strict=True) if u))

    def product(self, params: list[Tensor], parts: list[Tensor], *, keep: bool) -> tuple[Tensor, ...] | None:
        # A gradient without a graph is constant (f is linear in its parameter): it adds nothing.
        pairs = [(g, part) for g, part in zip(self.gradients, parts, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return None
        # The vector-Jacobian product of the gradient is vᵀH, and H is symmetric. It takes one backward pass.
        outputs, weights = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, params, weights, retain_graph=keep, materialize_grads=True)

    def slopes(self, params: list[Tensor]) -> tuple[Tensor | None, ...]:
        return self.gradients


class HessianOperator:
    """The exact Hessian of an objective with respect to some parameters, by double backpropagation.

    If the graphs of all batches' gradients fit the memory budget, they are built once and kept. If not, each product
    builds each batch's graph anew. A product by a kept graph costs about as much as two gradients.

    Args:
        objective: f; the operator is made and used inside ``objective.held()``.
        parameters: by name. Parameters that f doesn't depend on are left out.
        memory_budget: bytes for the kept graphs; by default half of what the device has free.

    Attributes:
        names: names of the parameters, in the order of a vector's entries.
        parameters: the parameters, in the same order.
        left_out: names of parameters that require no gradient or on which f doesn't depend.
        matvecs: number of products so far.
        custom_functions: names of the `torch.autograd.Function`s in the graph of f, whose second derivative is theirs.

    Raises:
        UserError: no parameter requires a gradient, or f depends on none of them.
        RuntimeError: the objective isn't held.
    """

    def __init__(
        self, objective: Objective, parameters: Mapping[str, Tensor], *, memory_budget: int | None = None
    ) -> None:
        if not objective.is_held:
            raise RuntimeError("a HessianOperator lives inside objective.held()")
        self.objective = objective
        self.matvecs, self.custom_functions = 0, tuple[str, ...]()
        candidates = {name: p for name, p in parameters.items() if p.requires_grad}
        if not candidates:
            raise UserError("no parameter is chosen that requires a gradient")
        self._graphs: list[Derivatives] = []
        self.device = objective.device
        used = self._differentiate_once(candidates, memory_budget)
        self.names = tuple(name for name, is_used in zip(candidates, used, strict=True) if is_used)
        self.left_out = tuple(name for name in parameters if name not in self.names)
        self.parameters = [candidates[name] for name in self.names]
        if not self.parameters:
            raise UserError("the loss depends on none of the parameters chosen")
        self._graphs = [graph.chosen(used) for graph in self._graphs]
        self.sizes = [p.numel() for p in self.parameters]
        self.size, self.dtype = sum(self.sizes), self.parameters[0].dtype

    def _differentiate_once(self, candidates: Mapping[str, Tensor], budget: int | None) -> list[bool]:
        """Find out on which parameters f depends on any rank, and keep the graphs if all of them fit."""
        params, objective = list(candidates.values()), self.objective
        used = torch.zeros(len(params), device=self.device)
        room, self._keeps = budget, True
        if room is None:
            room = free_memory(self.device, objective.shards.world_size) // 2
        for index in range(len(objective.batches)):
            with SavedBytes() as saved:
                graph = self._derivatives(index, params)
            if index == 0:
                self.custom_functions = custom_functions(graph.value)
            used += torch.tensor([float(g is not None) for g in graph.gradients], device=self.device)
            # All graphs are kept or none, so that one flag says whether a product frees the graphs that it uses.
            room -= saved.bytes
            self._keeps = self._keeps and room >= 0
            self._graphs = [*self._graphs, graph] if self._keeps else []
        return (objective.shards.sum(used) > 0).tolist()

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate one tensor per parameter, given by name, to a vector of shape (n,).

        A tensor may be 0-dim: one number for all elements of its parameter.
        """
        parts = [tensors[name].to(self.device, self.dtype).expand(p.shape) for name, p in self._named()]
        return torch.cat([part.reshape(-1) for part in parts])

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """Views of a vector of shape (n,) as one tensor per parameter, by name."""
        parts = torch.split(v, self.sizes)
        return {name: part.view(p.shape) for (name, p), part in zip(self._named(), parts, strict=True)}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.names, self.parameters, strict=True)

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        self.matvecs += 1
        parts = list(self.split(v).values())
        total = torch.empty_like(v) if out is None else out
        is_first = True
        for graph in self._each():
            products = graph.product(self.parameters, parts, keep=self._keeps)
            if products is None:
                continue
            # The first batch overwrites what ``out`` held; the others are added through views of it.
            if is_first:
                torch.cat([product.detach().reshape(-1) for product in products], out=total)
            else:
                torch._foreach_add_(list(self.split(total).values()), products)
            is_first = False
        return self.objective.shards.sum(total.zero_() if is_first else total)

    def gradient(self) -> Tensor:
        """∇f(w), shape (n,)."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for graph in self._each():
            gradients = graph.slopes(self.parameters)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
            total += torch.cat([part.detach().reshape(-1) for part in parts])
        return self.objective.shards.sum(total)

    def _each(self) -> Iterator[Derivatives]:
        """Each batch's derivatives with their graphs."""
        if self._keeps:
            yield from self._graphs
            return
        for index in range(len(self.objective.batches)):
            yield self._derivatives(index, self.parameters)

    def _derivatives(self, index: int, params: list[Tensor]) -> Derivatives:
        """What a product needs of batch ``index``."""
        term = self.objective.term(index)
        return _Gradient(term, gradient_of(term, params))


def gradient_of(
    term: Tensor | list[Tensor], params: list[Tensor], weights: list[Tensor] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradient with its graph, None where ``term`` doesn't depend on a parameter.

    Args:
        term: what is differentiated, one number or several tensors.
        params: with respect to what.
        weights: by what the elements of several tensors are multiplied before they are added up.

    Raises:
        UserError: the model checkpoints activations in the re-entrant form, whose graph can't be differentiated again.
    """
    try:
        return torch.autograd.grad(term, params, weights, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UserError(
            "the model checkpoints activations in the re-entrant form, which can't be differentiated twice: call "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        ) from None


CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container's limits, in the layout of cgroup version 2."""


def free_memory(device: torch.device, ranks: int = 1) -> int:
    """Bytes that one of so many ranks may use.

    A CUDA device is one rank's alone. On the CPU the ranks share what the machine, or the container, has free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30  # a guess, for systems that don't tell
    if device.type == "cpu" and hasattr(os, "sysconf"):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    # Without a container there is no such file (OSError), without a limit it says "max" (ValueError).
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(limit - used, 0))
    return free // ranks
