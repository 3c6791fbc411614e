"""Dense Hessians by another route: torch.func's reverse-over-reverse with vmap, on a functional copy of the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def dense_hessian(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, names: Sequence[str] | None = None
) -> Tensor:
    """∂²/∂w² of ``loss(model(x), y)`` in the model's present mode, parameters in the order of ``names``."""
    params = dict(model.named_parameters())
    names = list(params) if names is None else list(names)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    sizes = [params[name].numel() for name in names]

    def f(flat: Tensor) -> Tensor:
        parts = torch.split(flat, sizes)
        moved = {name: part.view_as(params[name]) for name, part in zip(names, parts, strict=True)}
        return loss(functional_call(model, {**params, **moved, **buffers}, (x,)), y)

    matrix: Tensor = jacrev(grad(f))(torch.cat([params[name].detach().reshape(-1) for name in names]))
    return matrix.detach()


def dense_gauss_newton(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Jᵀ·∇²ℓ·J with both factors as whole matrices, in the model's evaluation mode."""
    model = copy.deepcopy(model).eval()
    params = dict(model.named_parameters())
    sizes = [p.numel() for p in params.values()]

    def outputs(flat: Tensor) -> Tensor:
        parts = zip(params, torch.split(flat, sizes), strict=True)
        moved = {name: part.view_as(params[name]) for name, part in parts}
        return functional_call(model, moved, (x,)).flatten()

    flat = torch.cat([p.detach().flatten() for p in params.values()])
    with sdpa_kernel(SDPBackend.MATH):  # vmap knows no fused kernels
        z, jacobian = outputs(flat), jacrev(outputs)(flat)
    inner = jacrev(grad(lambda z: loss(z.view(len(x), -1), y)))(z)
    return (jacobian.T @ inner @ jacobian).detach()
