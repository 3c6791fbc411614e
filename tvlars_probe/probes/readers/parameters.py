"""Which tensor is which: names, layers and kinds of an optimizer's parameters.

Wrappers (DDP, DataParallel, torch.compile) are unwrapped as objects, wherever in the model they stand; names are
never edited.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tvlars_probe.optimizers.description import describe
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

Kind = Literal["conv", "linear", "norm", "bias", "other"]

# torch has no public base of its batch and instance normalisation (`_NormBase`), nor of its convolutions (`_ConvNd`).
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterInfo:
    """One row of the manifest's table of parameters.

    Attributes:
        name: as in ``named_parameters()`` of the unwrapped model, or ``optimizer<i>.group<j>.<k>``.
        aliases: further names of a tied tensor.
        layer: name of the module that holds it.
        kind: conv, linear (weights), norm (weight or bias of a normalisation layer), bias (any other), other.
        shape: its shape.
        numel: its number of elements.
        optimizer: index of the optimizer that updates it, None if none does.
        group: index of that optimizer's parameter group.
        adapted: whether its rate is scaled by a trust ratio; None for optimizers without a description.
        decayed: whether it gets weight decay; None for optimizers without a description.
        trainable: whether it requires a gradient.
    """

    name: str
    aliases: tuple[str, ...] = ()
    layer: str | None = None
    kind: Kind = "other"
    shape: tuple[int, ...] = ()
    numel: int = 0
    optimizer: int | None = None
    group: int | None = None
    adapted: bool | None = None
    decayed: bool | None = None
    trainable: bool = True

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A parameter of a model.

    Attributes:
        tensor: the parameter.
        module: the module that holds it; of a tied tensor, the first one.
        layer: that module's name.
        leaf: the tensor's name in that module.
        names: all its full names; several for a tied tensor.
    """

    tensor: Tensor
    module: nn.Module
    layer: str
    leaf: str
    names: tuple[str, ...]


def walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield each module with its name, as if there were no wrappers."""
    # `named_modules` would put the names of wrappers in between: "module", "_orig_mod".
    module = unwrap(module)
    yield prefix, module
    for name, child in module.named_children():
        yield from walk(child, f"{prefix}.{name}" if prefix else name)


def named_tensors(model: nn.Module | None) -> dict[int, NamedTensor]:
    """The model's parameters by ``id``, in the order of ``named_parameters()``; a tied tensor stands once."""
    found: dict[int, NamedTensor] = {}
    for layer, module in walk(model) if model is not None else ():
        # With duplicates, or a tensor tied within one module would show one of its names only.
        for leaf, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{layer}.{leaf}" if layer else leaf
            first = found.get(id(tensor))
            names = (*first.names, name) if first else (name,)
            if first is None:
                found[id(tensor)] = NamedTensor(tensor, module, layer, leaf, names)
            elif name not in first.names:
                found[id(tensor)] = NamedTensor(tensor, first.module, first.layer, first.leaf, names)
    return found


def kind_of(module: nn.Module, leaf: str) -> Kind:
    """What a parameter is for, judged by its module and its name there."""
    # The module comes first: a normalisation layer's bias is of the kind norm.
    if isinstance(module, _NORMS):
        return "norm"
    # "in_proj_bias" is MultiheadAttention's.
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    if isinstance(module, _ConvNd):
        return "conv"
    return "linear" if isinstance(module, nn.Linear) else "other"


def optimizer_names(model: nn.Module | None, optimizers: Sequence[Optimizer]) -> list[list[str]]:
    """A name for each parameter of each optimizer, in the order of its groups: see `ParameterInfo`."""
    known = named_tensors(model)
    return [
        [
            known[id(p)].names[0] if id(p) in known else f"optimizer{i}.group{j}.{k}"
            for j, group in enumerate(optimizer.param_groups)
            for k, p in enumerate(group["params"])
        ]
        for i, optimizer in enumerate(optimizers)
    ]


def parameter_table(model: nn.Module | None, optimizers: Sequence[Optimizer]) -> list[ParameterInfo]:
    """The table of parameters: the model's first, then those that only an optimizer holds."""
    known = named_tensors(model)
    held: dict[int, dict[str, Any]] = {}
    strangers: list[ParameterInfo] = []
    for i, optimizer in enumerate(optimizers):
        for j, (group, told) in enumerate(zip(optimizer.param_groups, describe.groups(optimizer), strict=True)):
            for k, p in enumerate(group["params"]):
                decayed = told.decay_of(p.ndim) != 0 if told.is_known else None
                role = {"optimizer": i, "group": j, "adapted": told.adapts(p.ndim), "decayed": decayed}
                held[id(p)] = role
                if id(p) not in known:
                    strangers.append(_info(f"optimizer{i}.group{j}.{k}", p, **role))
    rows = [
        _info(
            t.names[0],
            t.tensor,
            aliases=t.names[1:],
            layer=t.layer,
            kind=kind_of(t.module, t.leaf),
            **held.get(key, {}),
        )
        for key, t in known.items()
    ]
    return rows + strangers


def _info(name: str, tensor: Tensor, **further: Any) -> ParameterInfo:
    return ParameterInfo(
        name=name, shape=tuple(tensor.shape), numel=tensor.numel(), trainable=tensor.requires_grad, **further
    )
