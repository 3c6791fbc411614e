"""`describe` says what an optimizer of torch, of this package or of another does to each of its parameter groups.

A class that has no rule here can be given one::

    @tvlars_probe.describe.register(MyOptimizer)
    def _(optimizer):
        return tuple(GroupDescription(optimizer="MyOptimizer", ...) for group in optimizer.param_groups)

An optimizer that nobody has described is unknown: its norms are recorded, and nothing else is assumed of it.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from tvlars_probe.optimizers.foreign_rules import FOREIGN, WRAPPERS, is_described_version
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.registry import OPTIMIZERS
from tvlars_probe.optimizers.rules import TORCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.optimizers.rules import Rule

RULES: Mapping[str, Rule] = {**TORCH, **FOREIGN, **{entry.path: entry.rule for entry in OPTIMIZERS.values()}}
"""The rule of each described class, by the class's full name: no package has to be imported for its entry."""

MOVING = {"params", "lr", "initial_lr", "num_updates", "step"}
"""Entries of a parameter group that schedules or steps change in every update. No description depends on them."""

_HARMLESS = {name for name in vars(Optimizer) if name != "step"}
"""Methods of torch's base class. A subclass may override them without changing what a step does."""


@functools.singledispatch
def describe(optimizer: Any) -> tuple[GroupDescription, ...]:
    """Describe each parameter group of an optimizer by its present settings.

    Settings that are changed later aren't followed; `LiveDescription` follows them.

    Args:
        optimizer: any optimizer. For a wrapper that only delegates (accelerate's), the wrapped optimizer is described.
            A subclass is described as its parent is, unless it overrides a method on which the step depends.

    Returns:
        One description per parameter group. Its ``is_known`` is False where the class has no rule, or where a
        description can't express one of the group's settings.

    Raises:
        TypeError: ``optimizer`` has no parameter groups, so it is not an optimizer.
    """
    kind = type(optimizer)
    wrapped = WRAPPERS.get(_path(kind))
    if wrapped is not None:
        return describe(getattr(optimizer, wrapped))
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise TypeError(f"{kind.__name__} is no optimizer: it has no param_groups")
    rule = _rule_of(kind)
    # apex and pytorch_optimizer keep some settings (adam_w_mode, maximize) on the optimizer, not in its groups.
    further: dict[str, Any] = {
        name: value for name, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)
    }
    further["defaults"] = getattr(optimizer, "defaults", {})
    return tuple(_described(kind, rule, {**further, **group}) for group in groups)


def _described(kind: type[Any], rule: Rule | None, settings: Mapping[str, Any]) -> GroupDescription:
    found = None
    if rule is not None:
        try:
            found = rule(settings)
        except KeyError:  # this version of the class lacks a setting that the rule reads
            found = None
    if found is None:
        return GroupDescription.unknown(kind.__name__, kind.__module__)
    # A rule names the class that it was written for; a subclass goes by its own name.
    return replace(found, optimizer=kind.__name__, module=kind.__module__)


def _rule_of(kind: type[Any]) -> Rule | None:
    """The rule of the class itself, or of the nearest described parent if the class makes the same step."""
    for parent in kind.__mro__:
        path = _path(parent)
        if path in RULES:
            return RULES[path] if is_described_version(path) and not _overrides(kind, parent) else None
    return None


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _overrides(kind: type[Any], parent: type[Any]) -> bool:
    """Whether a class overrides any method or attribute of ``parent`` on which a step may depend."""
    # Names that the parent lacks are the subclass's own: the parent's step can't read them. Dunders are passed over
    # too, __init__ above all: the settings that it chooses stand in the groups.
    between = kind.__mro__[: kind.__mro__.index(parent)]
    names = {name for one in between for name in vars(one) if not name.startswith("__")}
    return any(
        # torch wraps a class's step in a new function when the first object of that class is made.
        inspect.unwrap(getattr(kind, name)) is not inspect.unwrap(getattr(parent, name))
        for name in names - _HARMLESS
        if hasattr(parent, name)
    )


def updates_made(group: Mapping[str, Any]) -> int | None:
    """The number of updates that an optimizer has counted in a parameter group (TVLARS' t); None if it counts none."""
    count: int | None = group.get("num_updates")
    return count


class LiveDescription:
    """An optimizer's descriptions, renewed when a setting has changed: some schedules change decay or momentum.

    Attributes:
        groups: one description per parameter group.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = self._read()
        self.groups = describe(optimizer)

    def renew(self) -> None:
        """Describe the optimizer again if a setting has changed since the last description."""
        settings = self._read()
        if settings != self._settings:
            self._settings, self.groups = settings, describe(self._optimizer)

    def _read(self) -> list[list[Any]]:
        # Comparing tensors would compare element by element and wait for their device: identity stands for them.
        return [
            [value if isinstance(value, _PLAIN) else id(value) for name, value in group.items() if name not in MOVING]
            for group in self._optimizer.param_groups
        ]


_PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of settings that `LiveDescription` compares by value; all others are compared by identity."""
