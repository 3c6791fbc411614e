"""What a loop has clipped through the recorder before a step: the gradients' norm, and the factor that clipped it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.reductions import accumulation_dtype, dense_and_real, multi_tensor_norms
from tvlars_probe.shards import whole_of
from tvlars_probe.whole_tensors import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPS = 1e-6
"""What torch's ``clip_grad_norm_`` adds to the norm before it divides the highest one by it."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """One call of ``clip_grad_norm_``.

    Attributes:
        members: identities of the tensors that were clipped together.
        norm: their norm before, on their device.
        scale: the factor by which all of them were multiplied, on their device.
        is_euclidean: whether the norm is ‖·‖₂.
    """

    members: frozenset[int]
    norm: Tensor
    scale: Tensor
    is_euclidean: bool


def clipped(params: Sequence[Tensor], norm: Tensor, max_norm: float, norm_type: float) -> Clipped:
    """What ``clip_grad_norm_(params, max_norm, norm_type)`` did, which returned ``norm``. The host doesn't wait.

    Of DTensors torch returns a DTensor, whose terms are added up here: every rank calls this.
    """
    wide = whole_of(norm.detach()).to(accumulation_dtype(norm.device))
    scale = (max_norm / (wide + _EPS)).clamp(max=1.0)
    return Clipped(frozenset(map(id, params)), wide, scale, float(norm_type) == 2.0)


def norm_of_gradients(params: Sequence[Tensor]) -> Tensor | None:
    """‖g‖₂ over the tensors that have a gradient, on their device; the host doesn't wait.

    None where no tensor has one, and where one is a DTensor: its norm would take a collective operation in the step.
    """
    if any(map(is_dtensor, params)):
        return None
    grads = [dense_and_real(p.grad) for p in params if p.grad is not None]
    return torch.linalg.vector_norm(multi_tensor_norms(grads)) if grads else None


def read_after(params: Sequence[Tensor], before: Tensor, by_value: bool = False) -> Clipped | None:
    """What somebody else has done to gradients whose norm was ``before``: their norm now tells the factor.

    ``by_value`` elements have a factor each, and all together none.
    """
    after = norm_of_gradients(params)
    if after is None:
        return None
    scale = torch.where(before == 0, torch.ones_like(after), after / before)
    scale = torch.full_like(scale, float("nan")) if by_value else scale
    return Clipped(frozenset(map(id, params)), before, scale, is_euclidean=True)


def noted(before: Sequence[Clipped], new: Clipped) -> list[Clipped]:
    """The calls before a step, with another one.

    A tensor is clipped once a step. So where the new call has a tensor of an earlier one, the earlier ones belong to a
    step that was never made: a gradient scaler skipped it.
    """
    stale = any(one.members & new.members for one in before)
    return [new] if stale else [*before, new]


def together(calls: Sequence[Clipped]) -> Tensor:
    """‖g‖₂ before clipping and ‖clipped g‖₂/‖g‖₂, over the tensors of all calls; NaN where the calls don't tell."""
    device = calls[0].norm.device
    norms = torch.stack([one.norm.to(device, non_blocking=True) for one in calls])
    scales = torch.stack([one.scale.to(device, non_blocking=True) for one in calls])
    unknown = torch.full_like(norms[0], float("nan"))
    if not all(one.is_euclidean for one in calls):
        return torch.stack([unknown, scales[0] if len(calls) == 1 else unknown])
    norm = torch.linalg.vector_norm(norms)
    # Of a single call the factor itself: the quotient of norms would round it, and is none at zero norm.
    scale = scales[0] if len(calls) == 1 else torch.linalg.vector_norm(norms * scales) / norm
    return torch.stack([norm, torch.where(norm == 0, torch.ones_like(scale), scale)])
