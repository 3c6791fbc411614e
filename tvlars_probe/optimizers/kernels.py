"""The arithmetic of the layer-wise optimizers, on torch's fused and multi-tensor kernels."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from tvlars_probe.reductions import Tensors, norm_of_square, squared_norm

CANCELLATION = 0.25
"""Where ‖u + λw‖ is below this share of ‖u‖ + λ‖w‖, the vector u + λw is formed and its norm taken.

The identity ‖u + λw‖² = ‖u‖² + 2λ⟨w, u⟩ + λ²‖w‖² cancels there. Down to this share s, cancellation magnifies the
relative error of its terms by 1/s² = 16 at most.
"""

# Norms between these have squares, and products with one another, in the range of double precision.
_LEAST_NORM, _MOST_NORM = 1e-140, 1e150


def decayed_direction(
    p: Tensor, direction: Tensor, decay: float, weight_norm: float, direction_norm: float, dot: float
) -> tuple[float, Tensor, float]:
    """‖u + λw‖ of a CPU tensor, from ‖w‖, ‖u‖ and ⟨w, u⟩ where that is accurate.

    Where u ≈ −λw the identity of `CANCELLATION` is inaccurate. There u + λw is formed in double precision.

    Args:
        p: the tensor w.
        direction: u.
        decay: λ.
        weight_norm: ‖w‖.
        direction_norm: ‖u‖.
        dot: ⟨w, u⟩.

    Returns:
        The norm ‖u + λw‖, a tensor d and a number c with d + c·w = u + λw. They are u and λ, or, where the sum has been
        formed, the sum and 0.
    """
    norm_sum = direction_norm + decay * weight_norm
    if not math.isfinite(norm_sum):
        # It shows in the result, and no sum would be better. Not by powers, which raise where a float overflows.
        squared = direction_norm * direction_norm + 2 * decay * dot + (decay * weight_norm) * (decay * weight_norm)
    elif norm_sum and not (_LEAST_NORM < norm_sum < _MOST_NORM and math.isfinite(dot)):
        return _formed(p, direction, decay) if decay else (direction_norm, direction, decay)
    else:
        squared = direction_norm**2 + 2 * decay * dot + (decay * weight_norm) ** 2
        if decay and norm_sum and squared < (CANCELLATION * norm_sum) ** 2:
            return _formed(p, direction, decay)
    # Rounding can make the square negative. A NaN stays: max returns its first argument unless the second is larger.
    return math.sqrt(max(squared, 0.0)), direction, decay


def _formed(p: Tensor, direction: Tensor, decay: float) -> tuple[float, Tensor, float]:
    """What `decayed_direction` returns where u + λw is formed: its norm, itself in the tensor's type, and 0."""
    exact = direction.double() + decay * p.double()
    return norm_of_square(squared_norm(exact), exact), exact.to(p.dtype), 0.0


def add_decay(directions: Tensors, params: Tensors, decays: list[float]) -> None:
    """u ← u + λw for every tensor, in multi-tensor kernels.

    Below float64 the kernels round λ to float32. Where u ≈ −λw, that error can reach every digit of the sum, so a
    second pass adds the remainder of λ.
    """
    # A multi-tensor kernel takes one factor for all its tensors: one call per distinct λ.
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
    """torch's one-pass SGD kernel on one tensor; parameter, gradient and buffer must have the same memory layout.

    mu ← momentum·mu + (1 − dampening)·(g + λw); w ← w − lr·mu. Without a buffer mu is g + λw.
    """
    # torch 2.6's kernel goes wrong by tens of percent on CPU tensors in half precision: it gets float32 copies.
    tensors = [p, grad] if momentum_buffer is None else [p, grad, momentum_buffer]
    w, g, *buffers = widened(tensors) if p.device.type == "cpu" else tensors
    # With is_first_step the kernel would set mu to g + λw without dampening. These optimizers' buffers start at zero
    # instead, so that the first step is like any other.
    torch._fused_sgd_(
        [w],
        [g],
        buffers,
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    if w is not p:
        kept = [p] if momentum_buffer is None else [p, momentum_buffer]
        torch._foreach_copy_(kept, [w, *buffers])


# At a step as late as this β^step is 0, so that the kernel's bias corrections 1 − β^step are 1.
_LATE = torch.tensor(1e9)


def fused_adam_direction(
    direction: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, betas: tuple[float, float], eps: float
) -> None:
    """Update Adam's moments m and v, and add m / (√v + eps) to ``direction``, in one pass.

    m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g². This is torch's fused Adam step without bias correction, with rate −1
    and ``direction`` in place of the weights.
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
    """``values`` at the indices ``adapted``, and the constant ``otherwise`` elsewhere."""
    # Indexing by a list would copy it to the device, and the host would wait for that.
    if len(adapted) == len(values):
        return values
    constant, chosen = torch.full_like(values[0], otherwise), {*adapted}
    return torch.stack([v if i in chosen else constant for i, v in enumerate(values.unbind())])


def widened(tensors: Tensors) -> Tensors:
    """Half-precision tensors as float32 copies, so that a result of several kernels is rounded once.

    Tensors of other types are returned as they are.
    """
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]


def scale_each(tensors: Tensors, factors: Tensors) -> None:
    """Multiply each tensor in place by its own 0-dim factor, on the same device."""
    if tensors:
        torch._foreach_mul_(tensors, factors)


def descend(params: Tensors, directions: Tensors, lr: float | Tensor) -> None:
    """w ← w − lr·d for every tensor; ``lr`` is a number, or a tensor of one element that is never read on the host."""
    if isinstance(lr, Tensor):
        torch._foreach_add_(params, torch._foreach_mul(directions, -lr.reshape(())))
    else:
        torch._foreach_add_(params, directions, alpha=-lr)
