"""The arithmetic of the layer-wise optimizers: torch's fused and multi-tensor kernels, put to their use."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from tvlars_probe.reductions import Tensors, squared_norm

CANCELLATION = 0.25
"""Below this share of ‖u‖ + λ‖w‖, the identity for ‖u + λw‖² loses digits and the sum is formed instead."""


def decayed_direction(
    p: Tensor, direction: Tensor, decay: float, weight_norm: float, direction_norm: float, dot: float
) -> tuple[float, Tensor, float]:
    """‖u + λw‖ of a CPU tensor, from ‖w‖, ‖u‖ and ⟨w, u⟩ where that is accurate.

    Where u ≈ −λw the identity cancels: there the sum is formed, in double precision.

    Returns:
        the norm, and a direction and a decay still to be added to it which together are u + λw.
    """
    norm_sum = direction_norm + decay * weight_norm
    squared = direction_norm**2 + 2 * decay * dot + (decay * weight_norm) ** 2
    if decay and 0 < norm_sum < math.inf and squared < (CANCELLATION * norm_sum) ** 2:
        exact = direction.double() + decay * p.double()
        return math.sqrt(squared_norm(exact)), exact.to(p.dtype), 0.0
    return math.sqrt(max(squared, 0.0)), direction, decay


def add_decay(directions: Tensors, params: Tensors, decays: list[float]) -> None:
    """u ← u + λw for every tensor, multi-tensor.

    Kernels take λ rounded to float32, which where u ≈ −λw is an error in all of the result's digits: what rounding
    took from λ is added in a second pass.
    """
    for decay in {*decays} - {0.0}:
        some = [i for i, d in enumerate(decays) if d == decay]
        u, w = [directions[i] for i in some], [params[i] for i in some]
        rounded = decay if u[0].dtype == torch.float64 else struct.unpack("f", struct.pack("f", decay))[0]
        torch._foreach_add_(u, w, alpha=rounded)
        if decay != rounded:
            torch._foreach_add_(u, w, alpha=decay - rounded)


def fused_sgd(
    p: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
) -> None:
    """torch's one-pass SGD kernel on one tensor, all of one memory layout.

    mu ← momentum·mu + (1 − dampening)·(g + λw); w ← w − lr·mu. Without a buffer mu is g + λw.
    """
    torch._fused_sgd_(
        [p],
        [grad],
        [] if momentum_buffer is None else [momentum_buffer],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


# Of a step so late, β^step is 0 and the bias corrections are 1.
_LATE = torch.tensor(1e9)


def fused_adam_direction(
    direction: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, betas: tuple[float, float], eps: float
) -> None:
    """m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², and m / (√v + eps) added to ``direction``, in one pass.

    That is torch's fused Adam step of rate −1 without bias correction, with ``direction`` for the weights.
    """
    torch._fused_adam_(
        [direction],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        [],
        [_LATE],
        lr=-1.0,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def where_adapted(adapted: list[int], values: Tensor, otherwise: float = 1.0) -> Tensor:
    """``values`` at the indices ``adapted``, a constant elsewhere; the indices never cross to the device."""
    if len(adapted) == len(values):
        return values
    constant, chosen = torch.full_like(values[0], otherwise), {*adapted}
    return torch.stack([v if i in chosen else constant for i, v in enumerate(values.unbind())])


def widened(tensors: Tensors) -> Tensors:
    """Half-precision tensors in float32, so that what is computed from them in several kernels is rounded once."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]


def scale_each(tensors: Tensors, factors: Tensors) -> None:
    """Multiply each tensor in place by its own 0-dim factor, on the same device."""
    if tensors:
        torch._foreach_mul_(tensors, factors)


def descend(params: Tensors, directions: Tensors, lr: float | Tensor) -> None:
    """w ← w − lr·d for every tensor, with ``lr`` a number or a 0-dim tensor that stays where it is."""
    if isinstance(lr, Tensor):
        torch._foreach_add_(params, torch._foreach_mul(directions, -lr.reshape(())))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)
