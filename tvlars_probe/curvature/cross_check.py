"""A second route to a product with the Hessian: forward over reverse.

A wrong double backward may be symmetric, and then nothing in Lanczos' process shows it. Here the directional derivative
of the gradient is taken in forward mode: ∂/∂ε ∇f(w + εv) at ε = 0. It uses the formulas of the first backward pass and
their forward derivatives, and none of the second backward pass. One product checks all eigenvectors of a measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tvlars_probe.curvature.convergence import limit
from tvlars_probe.curvature.doubts import AGREES, DIFFERS, unchecked
from tvlars_probe.curvature.gauss_newton import GaussNewtonOperator, evaluated, returned, slopes_of
from tvlars_probe.curvature.krylov import norm, rounding
from tvlars_probe.curvature.preserving import refill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tvlars_probe.curvature.operators import HessianOperator, Operator
    from tvlars_probe.curvature.results import Eigenvalues

SATURATED = 1e-3
"""A loss below this may have lost digits in float32: its check is made in float64."""


class NotCheckedError(Exception):
    """The product can't be computed in forward mode; the message says why."""


@dataclass(frozen=True)
class ForwardOverReverse:
    """The Hessian's product as the forward derivative of its gradient; it is used inside ``objective.held()``.

    Attributes:
        hessian: the operator that is checked; objective and parameters are its own.
        dtype: type in which the model, its inputs and the product are computed.
    """

    hessian: HessianOperator
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Dimensions of the operator."""
        return self.hessian.size

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return self.hessian.device

    def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """H·v.

        Raises:
            NotCheckedError: an operation has no forward derivative on some rank, or the loss reaches its parameters by
                another way than through the model.
        """
        total, reason = torch.zeros(self.size, dtype=self.dtype, device=self.device), ""
        try:
            total = self._product(v)
        except NotCheckedError as error:
            reason = str(error)
        except (NotImplementedError, RuntimeError) as error:  # torch has no narrower error for a missing formula
            reason = str(error).partition("\n")[0]
        # A rank that failed alone would leave the others waiting in the sum below.
        shards = self.hessian.objective.shards
        if shards.sum(torch.tensor(float(bool(reason)), device=self.device)).item():
            raise NotCheckedError(reason or "another rank can't compute it")
        total = shards.sum(total)
        return total if out is None else out.copy_(total)

    def _product(self, v: Tensor) -> Tensor:
        objective, hessian = self.hessian.objective, self.hessian
        own = [*objective.model.parameters(), *objective.model.buffers()]
        if {id(p) for p in hessian.parameters} - {id(t) for t in own}:
            raise NotCheckedError("a parameter isn't the model's own")
        if any(isinstance(module, torch.jit.ScriptModule) for module in objective.model.modules()):
            raise NotCheckedError("the tensors of a scripted module can't be exchanged")
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        # The first product makes torch compile its own formulas, by a function that it calls deprecated.
        with warnings.catch_warnings(), forward_ad.dual_level():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            tangents = hessian.split(v.to(self.dtype))
            duals = [
                forward_ad.make_dual(self._of_type(p.detach()).requires_grad_(), tangents[name])
                for name, p in zip(hessian.names, hessian.parameters, strict=True)
            ]
            others = {id(t): self._of_type(t.detach()) for t in own}
            tensors = others | {id(p): dual for p, dual in zip(hessian.parameters, duals, strict=True)}
            for index, batch in enumerate(objective.batches):
                typed = tuple(self._of_type(part) for part in batch)
                parts = self._by_parameter(index, typed, duals, tensors)
                # No gradient, or one without tangent, is constant.
                flat = [
                    torch.zeros_like(p, dtype=self.dtype) if part is None else part
                    for p, part in zip(hessian.parameters, parts, strict=True)
                ]
                total += torch.cat([part.detach().reshape(-1) for part in flat])
        return total

    def _by_parameter(
        self, index: int, batch: tuple[Tensor, ...], duals: list[Tensor], tensors: dict[int, Tensor]
    ) -> list[Tensor | None]:
        """A batch's share of the product, by parameter; None for zero."""
        with _exchanged(self.hessian.objective.model, tensors):
            loss = self.hessian.objective.term(index, batch)
        gradients = self._gradients(loss, duals, None)
        return [None if g is None else forward_ad.unpack_dual(g).tangent for g in gradients]

    def _gradients(self, value: Tensor | list[Tensor], inputs: list[Tensor], weights: Any) -> tuple[Tensor | None, ...]:
        """The gradient by the tensors that are in the parameters' places."""
        found = torch.autograd.grad(value, [*inputs, *self.hessian.parameters], weights, allow_unused=True)
        if any(g is not None for g in found[len(inputs) :]):
            raise NotCheckedError("the loss reaches parameters by another way than through the model")
        return found[: len(inputs)]

    def _of_type(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


class ForwardGaussNewton(ForwardOverReverse):
    """The Gauss-Newton matrix's product with J·v as the outputs' forward derivative."""

    def _by_parameter(
        self, index: int, batch: tuple[Tensor, ...], duals: list[Tensor], tensors: dict[int, Tensor]
    ) -> list[Tensor | None]:
        assert isinstance(self.hessian, GaussNewtonOperator)
        objective, loss = self.hessian.objective, self.hessian.loss
        # Forward alone: backward passes in forward mode take formulas that many operations lack.
        with _exchanged(objective.model, tensors):
            pushed, _ = returned(objective, loss, batch)
        plain = [forward_ad.unpack_dual(dual).primal.detach().requires_grad_() for dual in duals]
        exchanged = tensors | {id(p): q for p, q in zip(self.hessian.parameters, plain, strict=True)}
        with _exchanged(objective.model, exchanged):
            found = evaluated(objective, loss, index, batch)
        tangents = [forward_ad.unpack_dual(pushed[place]).tangent for place in found.places]
        slopes = slopes_of(found.term, found.leaves)
        pairs = [
            (s, v) for s, v in zip(slopes, tangents, strict=True) if s is not None and s.requires_grad and v is not None
        ]
        if not pairs:
            return [None] * len(duals)
        weights = torch.autograd.grad(
            [s for s, _ in pairs], found.leaves, [v for _, v in pairs], materialize_grads=True
        )
        return [*self._gradients(found.outputs, plain, weights)]


@contextlib.contextmanager
def _exchanged(model: nn.Module, tensors: dict[int, Tensor]) -> Iterator[None]:
    """Give a model other tensors in place of its own, by their ids, wherever a module holds them.

    Inside, no tangent passes where a backward pass lets no gradient through, so that both derive the same function.
    """
    # Not by torch's functional_call, which leaves a module with the other tensors if the model holds it twice. All
    # attributes are put back: an LSTM, for one, keeps a list of its weights.
    kept = [(home, dict(home)) for module in model.modules() for home in _homes(module)]
    try:
        for module in model.modules():
            for home in _homes(module)[1:]:
                home.update({name: tensors[id(t)] for name, t in home.items() if id(t) in tensors})
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module._parameters["weight"] = _held(module.weight, module.padding_idx)  # type: ignore[assignment]
        with _ConstantWithoutGrad():
            yield
    finally:
        for home, before in kept:
            refill(home, before)


def _held(weight: Tensor, row: int) -> Tensor:
    """Rows of an embedding, one of them a constant: a backward pass gives the row of ``padding_idx`` no gradient."""
    is_held = torch.arange(len(weight), device=weight.device)[:, None] == row
    return torch.where(is_held, forward_ad.unpack_dual(weight).primal.detach(), weight)


class _ConstantWithoutGrad(TorchFunctionMode):
    """What is computed under ``torch.no_grad()`` is a constant in forward mode, too: torch's own passes tangents on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **kwargs or {})
        if torch.is_grad_enabled():
            return found
        return tree_map(lambda x: forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x, found)


def _homes(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module holds its tensors; the first dictionary holds the others."""
    return [vars(module), module._parameters, module._buffers]


def cross_checked(
    found: Eigenvalues,
    rebuilt: Callable[[Any], Operator],
    *,
    hessian: HessianOperator,
    loss: float,
) -> tuple[Eigenvalues, str]:
    """Compare eigenvectors' products with those by forward over reverse.

    The disagreement E = B − A of both routes is seen by w, which holds the sum of all eigenvectors v_i and a random
    vector of norm √n. |⟨v_i, E w⟩| is a first-order estimate of the error of λ_i, ‖E w‖ one of ‖E‖ in the Frobenius
    norm. An error of an eigenvalue that is smaller than the first is raised to it. A disagreement beyond `rounding`
    of ‖A w‖ and beyond the tolerance leaves no value converged, and all errors are raised to it.

    Args:
        found: eigenvalues with their vectors and ``combined``.
        rebuilt: makes of another product with the Hessian the operator that is compared with A.
        hessian: the Hessian, or Gauss-Newton matrix, of which A is made.
        loss: f(w).

    Returns:
        the eigenvalues, and the outcome: one of those in `tvlars_probe.curvature.doubts`.
    """
    w, product = found.combined
    route = ForwardGaussNewton if isinstance(hessian, GaussNewtonOperator) else ForwardOverReverse
    own = hessian.dtype
    # The other type is a second chance. In float64 torch leaves fused kernels aside that have no forward derivative, an
    # LSTM's on the CPU for instance; a loss may have constants of its own type, and fail in float64.
    wanted = [own, torch.float64] if own != torch.float64 and _has_float64(w.device) else [own]
    wanted = wanted[::-1] if abs(loss) < SATURATED else wanted
    for dtype in wanted:
        try:
            other = rebuilt(route(hessian, dtype)).matvec(w.to(dtype))
        except NotCheckedError:
            continue
        # In the wider type: the difference is what counts, and of what is left rounding would be a large part.
        difference = other - product.to(dtype)
        scale = max(abs(value.value) for value in found.values)
        allowed = max(rounding(own) * norm(product), found.tol * scale)
        disagreement = norm(difference)
        agrees = disagreement <= allowed
        values = []
        for value, vector in zip(found.values, found.vectors, strict=True):
            told = max(value.error, abs((vector.to(dtype) @ difference).item()), 0.0 if agrees else disagreement)
            within = told <= max(limit(value.value, scale, found.tol), value.error)
            values.append(dataclasses.replace(value, error=told, converged=value.converged and agrees and within))
        return dataclasses.replace(found, values=tuple(values)), AGREES if agrees else DIFFERS
    return found, unchecked(hessian.custom_functions)


def _has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64 at a fair speed."""
    if device.type != "cuda":
        return device.type == "cpu"
    # Chips for data centres (6.0, 7.0, 8.0, 9.0, 10.0) have a half of the speed, all others a thirty-second or less.
    major, minor = torch.cuda.get_device_capability(device)
    return minor == 0 and major <= 10
