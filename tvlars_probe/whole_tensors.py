"""Which tensors and models this process can read; any other is refused here, by its name and with the remedy.

The norm of a tensor that is spread over ranks takes a collective operation, for which a rank that reads alone waits for
ever; and the norm of the rank's own shard is another number. The recorder and our optimizers do take DTensors: all
ranks read their shards, and `tvlars_probe.shards` makes the whole tensor's figures of the shards'. What needs whole
elements takes none. Nothing can be read of a tensor without elements.

Whatever takes a model or an optimizer asks here first. No package is imported for it: kinds are known by the names of
their classes, and by the marks that a package leaves on its tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FSDP1, _ZERO = "FSDP1 (FullyShardedDataParallel)", "DeepSpeed's ZeRO"

_SPREAD_CLASSES = {
    "DTensor": "a DTensor, as FSDP2 (fully_shard) and tensor parallelism make them",
    "ShardedTensor": "a ShardedTensor",
    "FlatParameter": f"part of a FlatParameter of {_FSDP1}",
}
"""Classes of tensors that are spread over ranks, and what to call such a tensor."""

_SPREAD_MARKS = {
    "_is_flat_param": f"a FlatParameter of {_FSDP1}",
    "_fsdp_flattened": f"flattened by {_FSDP1}",
    "ds_id": f"a parameter of {_ZERO}",
    "ds_tensor": f"a parameter of {_ZERO}",
    "tensor_model_parallel": "a shard of Megatron's tensor parallelism",
}
"""Attributes that packages set on tensors that they spread over ranks; one that is False or None says the reverse."""

_SPREADING_MODULES = {
    "FullyShardedDataParallel": _FSDP1,
    "DeepSpeedEngine": "DeepSpeed",
    "ShardedDataParallel": "fairscale's ShardedDataParallel",
}
"""Modules that spread the model inside them, or its gradients, over ranks."""

REMEDY = "Train in one process, under DistributedDataParallel, or with DTensors (fully_shard, parallelize_module)"
"""What to do about tensors that are spread over ranks, where DTensors are taken."""

_WHOLE_REMEDY = "Use one process or DistributedDataParallel, where every tensor is whole"
"""The same where whole tensors are needed."""


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    kind = type(tensor)
    # By its name: importing the class would import the half of torch.distributed that most loops never need.
    return kind not in _PLAIN and any(one.__name__ == "DTensor" for one in kind.__mro__)


def spread_over_ranks(tensor: Tensor, *, takes_dtensors: bool = False) -> str | None:
    """What a tensor is whose elements are spread over ranks; None for one that can be read.

    Args:
        tensor: the tensor.
        takes_dtensors: whether the caller reads the shards of DTensors. One that holds terms of a sum which hasn't been
            taken yet (placement Partial) has no shards.
    """
    kind = type(tensor)
    marks = tensor.__dict__
    if not marks and kind in _PLAIN:
        return None  # asked for every tensor in every step
    told = [what for mark, what in _SPREAD_MARKS.items() if marks.get(mark) is not None and marks[mark] is not False]
    if takes_dtensors and is_dtensor(tensor):
        placements: Any = tensor.placements  # type: ignore[attr-defined]
        told += ["a DTensor of terms that aren't added up yet (Partial)"] * any(one.is_partial() for one in placements)
    else:
        told += [_SPREAD_CLASSES[one.__name__] for one in kind.__mro__ if one.__name__ in _SPREAD_CLASSES]
    return told[0] if told else None


_PLAIN = (Tensor, nn.Parameter)


def refuse_spread(tensors: Iterable[tuple[str, Tensor]], *, takes_dtensors: bool = False) -> None:
    """Refuse tensors that are spread over ranks.

    Args:
        tensors: names and tensors.
        takes_dtensors: as in `spread_over_ranks`.

    Raises:
        UserError: one of them is.
    """
    remedy = REMEDY if takes_dtensors else _WHOLE_REMEDY
    for name, tensor in tensors:
        if (what := spread_over_ranks(tensor, takes_dtensors=takes_dtensors)) is not None:
            raise UserError(f"{name} is {what}, spread over ranks, and can't be read. {remedy}")


def refuse_unreadable(tensors: Iterable[tuple[str, Tensor]], *, takes_dtensors: bool = False) -> None:
    """Refuse tensors that can't be read here. One that isn't trained may hold elements of any kind.

    Args:
        tensors: names and tensors.
        takes_dtensors: as in `spread_over_ranks`.

    Raises:
        UserError: one of them is spread over ranks, has no elements or no shape yet, or elements of another kind.
    """
    for name, tensor in tensors:
        refuse_spread([(name, tensor)], takes_dtensors=takes_dtensors)
        fault = _without_elements(tensor) or (_of_another_kind(tensor) if tensor.requires_grad else None)
        if fault is not None:
            raise UserError(f"{name} {fault}")


def _without_elements(tensor: Tensor) -> str | None:
    """What a tensor lacks, with the remedy; None where it has elements."""
    if nn.parameter.is_lazy(tensor):
        return "has no shape yet: pass a batch through the model first"
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        return "is on the meta device and holds no numbers: load or initialise the model first"
    return None


def _of_another_kind(tensor: Tensor) -> str | None:
    """Why a tensor's elements can't be read, with the remedy; None where they can."""
    kind = type(tensor)
    if tensor.is_nested or tensor.layout not in (torch.strided, torch.sparse_coo):
        form = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is a {form} tensor, whose norms aren't read: make it a dense one"
    if hasattr(kind, "__tensor_flatten__") and not is_dtensor(tensor):
        return f"is a {kind.__name__}, whose elements only its own class can read: train an ordinary tensor"
    return None


def refuse_model(model: nn.Module | None, *, takes_dtensors: bool = False) -> None:
    """Refuse a model that is spread over ranks, or whose parameters have no shape yet.

    Args:
        model: the model; None for none.
        takes_dtensors: as in `spread_over_ranks`.

    Raises:
        UserError: it is one, or no module.
    """
    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise UserError(f"model= takes a torch.nn.Module or None, got {model!r:.60}")
    for name, module in model.named_modules():
        spreading = (what for one in type(module).__mro__ if (what := _SPREADING_MODULES.get(one.__name__)))
        if (what := next(spreading, None)) is not None:
            where = f"its {name}" if name else "it"
            remedy = REMEDY if takes_dtensors else _WHOLE_REMEDY
            raise UserError(f"the model can't be read: {where} is spread over ranks by {what}. {remedy}")
    for name, p in model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise UserError(f"{name} {_without_elements(p)}")
        refuse_spread([(name, p)], takes_dtensors=takes_dtensors)
