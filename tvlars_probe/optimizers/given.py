"""The optimizers that somebody gives: taken out of what only wraps them, or refused by name.

No package is imported for it: classes are known by their full names, an optimizer inside another by its being there.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.foreign_rules import SPREADING, WRAPPERS
from tvlars_probe.shards import refuse_part_of_ranks
from tvlars_probe.whole_tensors import REMEDY, refuse_model, refuse_unreadable
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from torch import Tensor

    from tvlars_probe.collectives import Ranks


def optimizers_in(given: Any, model: nn.Module | None = None, *, ranks: Ranks | None = None) -> list[Optimizer]:
    """The optimizers that make the steps.

    Args:
        given: an optimizer or several, as they are or wrapped.
        model: the model that they train, which gives its parameters' names to errors.
        ranks: those that read the shards of DTensors together; by default DTensors are refused.

    Returns:
        them as a list: each as `unwrapped` gives it, those in an optimizer that only holds others, and those that one
        has beside parameters of its own.

    Raises:
        UserError: one is no optimizer, or its tensors, or the model, can't be read here, or one shares some of its
            parameters with others that it holds.
    """
    takes_dtensors = ranks is not None
    refuse_model(model, takes_dtensors=takes_dtensors)
    listed: Sequence[Any] = list(given) if isinstance(given, list | tuple) else [given]
    trained = None if not isinstance(model, nn.Module) else {id(p) for p in model.parameters()}
    found = [inner for one in listed for inner in _members(unwrapped(one), trained)]
    if not found or not all(isinstance(one, Optimizer) for one in found):
        kinds = ", ".join(type(one).__name__ for one in found) or "none"
        raise UserError(f"a torch.optim.Optimizer or a list of them is needed, got {kinds} (give the one inside it)")
    names = {} if model is None else {id(p): name for name, p in unwrap(model).named_parameters()}
    for one in found:
        if not isinstance(getattr(one, "param_groups", None), list):
            raise UserError(f"{type(one).__name__} has no param_groups: give the optimizer inside it")
        refuse_unreadable(tensors_of(one, names), takes_dtensors=takes_dtensors)
    if ranks is not None:
        refuse_part_of_ranks([pair for one in found for pair in tensors_of(one, names)], ranks)
    return found


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that makes the steps: the inner one of a wrapper that only delegates, else the argument itself.

    Raises:
        UserError: the optimizer is spread over ranks.
    """
    while (attribute := _known(optimizer, WRAPPERS)) is not None:
        optimizer = getattr(optimizer, attribute, None)
    spreading = _known(optimizer, SPREADING)
    if spreading is not None or getattr(optimizer, "_overlap_with_ddp", False):
        what = spreading or "steps while DDP communicates (overlap_with_ddp)"
        raise UserError(f"{type(optimizer).__name__} {what}, so that its steps can't be read. {REMEDY}")
    return optimizer


def inner_of(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer that another one holds; None where it holds none, or several."""
    held = {id(value): value for value in vars(optimizer).values() if isinstance(value, Optimizer)}
    return next(iter(held.values())) if len(held) == 1 else None


def members_of(optimizer: Any) -> set[int]:
    """The identities of an optimizer's parameters; none where it has no groups."""
    return {id(p) for group in getattr(optimizer, "param_groups", None) or () for p in group["params"]}


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether torch calls hooks around the optimizer's steps.

    It doesn't where the class never called `Optimizer.__init__`, which puts torch's wrapper around the class's step.
    """
    there = vars(optimizer).keys() >= {"_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"}
    return there and bool(getattr(type(optimizer).step, "hooked", False))


def _members(optimizer: Any, trained: Set[int] | None) -> Iterator[Any]:
    """The optimizers that make the steps of one: itself, those that it holds, or both.

    Args:
        optimizer: the optimizer, without wrappers that only delegate.
        trained: identities of the model's parameters; None where there is no model.
    """
    single, several = _held(optimizer)
    held = [inner for one in single + several for inner in _members(unwrapped(one), trained)]
    theirs = {key for one in held for key in members_of(one)}
    # Where it only holds others its own tensor is none that is trained: torch's constructor wants one.
    groups = getattr(optimizer, "param_groups", None) or () if held else ()
    own = {id(p) for group in groups for p in group["params"] if p.requires_grad and (not trained or id(p) in trained)}
    if several and own <= theirs:
        yield from held
    elif own.isdisjoint(theirs) and own:
        yield optimizer
        # Without a model, another's tensors may be copies of its own in another precision. Of a model they aren't.
        yield from [one for one in held if (members_of(one) & trained if trained else several)]
    elif several and not theirs <= own:
        kind = type(optimizer).__name__
        raise UserError(
            f"{kind} steps some parameters itself and others by optimizers that it holds: give these in a list"
        )
    else:
        yield optimizer


def _held(optimizer: Any) -> tuple[list[Optimizer], list[Optimizer]]:
    """The optimizers that are an optimizer's attributes, and those in its lists, tuples and dicts; each once."""
    single, several = dict[int, Optimizer](), dict[int, Optimizer]()
    for value in vars(optimizer).values() if isinstance(optimizer, Optimizer) else ():
        some = list(value.values()) if isinstance(value, dict) else value
        if isinstance(value, Optimizer) and value is not optimizer:
            single[id(value)] = value
        elif isinstance(some, list | tuple) and some and all(isinstance(one, Optimizer) for one in some):
            several |= {id(one): one for one in some}
    return [one for key, one in single.items() if key not in several], [*several.values()]


def tensors_of(optimizer: Optimizer, names: Mapping[int, str] = MappingProxyType({})) -> Iterator[tuple[str, Tensor]]:
    """An optimizer's parameters, each with its name by ``id`` or a description of its place."""
    kind = type(optimizer).__name__
    for g, group in enumerate(optimizer.param_groups):
        for k, p in enumerate(group["params"]):
            yield names.get(id(p)) or f"parameter {k} of {kind}'s group {g}", p


def _known(optimizer: Any, table: dict[str, str]) -> str | None:
    """What a table has of the optimizer's class or the nearest of its parents, by full name or by name alone."""
    for kind in type(optimizer).__mro__:
        for name in (f"{kind.__module__}.{kind.__qualname__}", kind.__name__):
            if name in table:
                return table[name]
    return None
