"""What a rank holds of a DTensor, and the figures of whole tensors from those of their shards.

FSDP2 (``fully_shard``) and tensor parallelism (``parallelize_module``) hold a parameter as a DTensor: along a dimension
of the device mesh each rank has a shard of it (placement Shard) or all have the same (placement Replicate). Where every
element is held by m ranks, the norm and the inner product of whole tensors follow from those of the shards t_r::

    ‖t‖² = Σ_r ‖t_r‖² / m        ⟨a, b⟩ = Σ_r ⟨a_r, b_r⟩ / m

A tensor that is no DTensor is the same on all ranks, so that m is their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.reductions import norms_of_squares, scaled_squares
from tvlars_probe.whole_tensors import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn


def shard_of(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """This rank's shard of a DTensor, in the same memory; any other tensor as it is.

    Args:
        tensor: the tensor.
        like: a DTensor on the same mesh, whose placements the shard is to have. Where ``tensor`` has others, its
            elements are sent between the ranks into new memory, and every rank calls this in the same order. Gradients
            may be terms of a sum (Partial), those of a normalisation under sequence parallelism for instance.
    """
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        placed: Any = tensor if like is None else _placed_like(tensor, like)
        local = placed.to_local()
    # What a collective of torch's has returned may still be on its way.
    shard: Tensor = local.wait() if hasattr(local, "wait") else local
    return shard


def reshard(model: nn.Module) -> None:
    """Let FSDP2 gather parameters anew in the next forward pass: it may keep what it has gathered after a pass."""
    for module in model.modules():
        if any(one.__name__ == "FSDPModule" for one in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def whole_of(tensor: Tensor) -> Tensor:
    """All elements of a tensor: of a DTensor they are gathered, and every rank calls this."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def is_placed_like(tensor: Tensor, like: Tensor) -> bool:
    """Whether the shards of one tensor are cut as those of another."""
    if not (is_dtensor(tensor) and is_dtensor(like)):
        return is_dtensor(tensor) is is_dtensor(like)
    return bool(tensor.placements == like.placements)  # type: ignore[attr-defined]


def _placed_like(tensor: Any, like: Any) -> Any:
    return tensor if is_placed_like(tensor, like) else tensor.redistribute(placements=like.placements)


def copies_of(tensor: Tensor, size: int) -> int:
    """m, the number of ranks that hold each element of a tensor.

    Args:
        tensor: a DTensor, or a tensor that all ranks have alike.
        size: the number of ranks, a multiple of that of a DTensor's mesh. A mesh of fewer ranks is one of several that
            hold the same.
    """
    if not is_dtensor(tensor):
        return size
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    placements: Any = tensor.placements  # type: ignore[attr-defined]
    replicated: int = math.prod(mesh.size(k) for k, one in enumerate(placements) if one.is_replicate())
    return replicated * (size // int(mesh.size()))


def largest_mesh(tensors: Iterable[Tensor]) -> Any:
    """The device mesh of most ranks; None where no tensor is a DTensor."""
    meshes: list[Any] = [t.device_mesh for t in tensors if is_dtensor(t)]  # type: ignore[attr-defined]
    return max(meshes, key=lambda mesh: mesh.size(), default=None)


def refuse_part_of_ranks(tensors: Sequence[tuple[str, Tensor]], ranks: Ranks) -> None:
    """Refuse DTensors whose meshes leave out some of the ranks.

    Where one mesh has all ranks, a smaller one is a part of it whose other parts hold the same: so FSDP2 along one
    dimension of a mesh holds what tensor parallelism along the other leaves alone. Without such a mesh other ranks may
    hold other tensors, as the stages of a pipeline do.

    Args:
        tensors: names and tensors.
        ranks: those that read together.

    Raises:
        UserError: there are DTensors, and none of them is on all ranks.
    """
    mesh = largest_mesh(tensor for _, tensor in tensors)
    if mesh is None or mesh.size() == ranks.world_size:
        return
    name = next(name for name, tensor in tensors if is_dtensor(tensor) and tensor.device_mesh == mesh)  # type: ignore[attr-defined]
    raise UserError(
        f"{name} is a DTensor on a mesh of {mesh.size()} ranks, and {ranks.world_size} read together, so that its norm "
        "can't be told. Call record() on all ranks of a process group that the mesh spans, without distributed=False"
    )


def refuse_gathered(model: nn.Module, params: Iterable[Tensor]) -> None:
    """Refuse a model of FSDP2 whose modules hold gathered tensors in place of an optimizer's DTensors.

    Raises:
        UserError: it is one.
    """
    held = {id(p) for p in model.parameters()}
    gathers = any(one.__name__ == "FSDPModule" for module in model.modules() for one in type(module).__mro__)
    if gathers and any(is_dtensor(p) and id(p) not in held for p in params):
        raise UserError(
            "the model holds gathered tensors in place of the optimizer's DTensors, so that these have no names: call "
            "record() before the first forward pass, or reshard() of fully_shard's modules before it"
        )


def holders_of(tensors: Sequence[Tensor], device: torch.device) -> Ranks | None:
    """The ranks that hold an optimizer's DTensors together; None where there are none.

    They are those of the default process group, or those of the only mesh, if it has one dimension: so that each stage
    of a pipeline steps for itself.

    Args:
        tensors: the optimizer's parameters.
        device: where this rank computes.

    Raises:
        UserError: several meshes, none of which spans the default process group.
    """
    mesh = largest_mesh(tensors)
    if mesh is None:
        return None
    world = Ranks.of_process_group(device)
    if mesh.size() == world.world_size:
        return world
    if mesh.ndim == 1 and all(t.device_mesh == mesh for t in tensors if is_dtensor(t)):  # type: ignore[attr-defined]
        return Ranks.of_process_group(device, mesh.get_group())
    raise UserError(
        f"the parameters are DTensors on meshes of up to {mesh.size()} ranks, and the process group has "
        f"{world.world_size}. Make that of the mesh's ranks alone, or an optimizer for each mesh of one dimension"
    )


@dataclass(frozen=True, slots=True)
class TensorFigures:
    """Norms and inner products of P tensors, whole or of this rank's shards.

    Attributes:
        norms: tensors of one shape (..., P).
        dots: tensors of that shape.
    """

    norms: Sequence[Tensor]
    dots: Sequence[Tensor]


def whole_figures(
    of_shards: Sequence[TensorFigures], copies: Sequence[Tensor], ranks: Ranks, *, wide: bool
) -> list[TensorFigures]:
    """The figures of whole tensors, by one sum over the ranks for all of them; every rank calls it.

    Args:
        of_shards: the figures of this rank's shards, in sets that may be on several devices.
        copies: for each set `copies_of` its tensors, (P,), on its device.
        ranks: those that hold the tensors together.
        wide: whether squares may leave the range of the figures' type: only those of float64 elements do.
    """
    sums = []
    for figures, held in zip(of_shards, copies, strict=True):
        sums += [scaled_squares(torch.stack([*figures.norms]), wide=wide) / held, torch.stack([*figures.dots]) / held]
    total = ranks.sum(torch.cat([one.to(sums[0], non_blocking=True).reshape(-1) for one in sums]))
    pieces = [
        piece.view(one.shape).to(one, non_blocking=True)
        for piece, one in zip(total.split([one.numel() for one in sums]), sums, strict=True)
    ]
    return [
        TensorFigures(norms_of_squares(squares).unbind(), dots.unbind())
        for squares, dots in zip(pieces[::2], pieces[1::2], strict=True)
    ]
