"""What is any optimizer? `describe` says it of each parameter group, for torch's, ours, and those of other packages.

It is open to anybody::

    @tvlars_probe.describe.register(MyOptimizer)
    def _(optimizer):
        return tuple(GroupDescription(optimizer="MyOptimizer", ...) for group in optimizer.param_groups)

An optimizer that nobody has described is unknown: its norms are recorded all the same, and nothing else is assumed.
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
"""By the full name of the class, so that no package is imported to be known."""

MOVING = {"params", "lr", "initial_lr", "num_updates", "step"}
"""Entries of a parameter group that schedules and steps change; no description depends on them."""

_HARMLESS = {name for name in vars(Optimizer) if name != "step"}
"""Methods that a subclass may override without changing what a step does."""


@functools.singledispatch
def describe(optimizer: Any) -> tuple[GroupDescription, ...]:
    """Describe each parameter group of an optimizer, as it is now: settings that are changed later aren't followed.

    Args:
        optimizer: any optimizer. A wrapper that only passes on what another one does (accelerate's) is seen through.
            A subclass is described as its parent is, unless it overrides what a step does.

    Returns:
        a description a group; one that is not known (``is_known``) where the class isn't, or one of its settings.

    Raises:
        TypeError: what is given is no optimizer: it has no parameter groups.
    """
    kind = type(optimizer)
    wrapped = WRAPPERS.get(_path(kind))
    if wrapped is not None:
        return describe(getattr(optimizer, wrapped))
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise TypeError(f"{kind.__name__} is no optimizer: it has no param_groups")
    rule = _rule_of(kind)
    further = {name: value for name, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)}
    return tuple(_described(kind, rule, {**further, **group}) for group in groups)


def _described(kind: type[Any], rule: Rule | None, settings: Mapping[str, Any]) -> GroupDescription:
    found = None
    if rule is not None:
        try:
            found = rule(settings)
        except KeyError:  # a version of the class that lacks one of its settings
            found = None
    if found is None:
        return GroupDescription.unknown(kind.__name__, kind.__module__)
    return replace(found, optimizer=kind.__name__, module=kind.__module__)


def _rule_of(kind: type[Any]) -> Rule | None:
    """The rule of the class, or of a parent whose steps it makes unchanged."""
    for parent in kind.__mro__:
        path = _path(parent)
        if path in RULES:
            return RULES[path] if is_described_version(path) and not _overrides(kind, parent) else None
    return None


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _overrides(kind: type[Any], parent: type[Any]) -> bool:
    """Whether a class changes anything by which its parent makes a step."""
    between = kind.__mro__[: kind.__mro__.index(parent)]
    names = {name for one in between for name in vars(one) if not name.startswith("__")}
    return any(
        # torch wraps each class's step in a function of its own, once there is an object of it
        inspect.unwrap(getattr(kind, name)) is not inspect.unwrap(getattr(parent, name))
        for name in names - _HARMLESS
        if hasattr(parent, name)
    )


def updates_made(group: Mapping[str, Any]) -> int | None:
    """How many updates a parameter group has been through, where its optimizer counts them in it."""
    count: int | None = group.get("num_updates")
    return count


class LiveDescription:
    """An optimizer's descriptions, made again when a setting has changed: schedules change decay and momentum, too.

    Attributes:
        groups: a description a group.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = self._read()
        self.groups = describe(optimizer)

    def renew(self) -> None:
        """Describe the optimizer again if one of its settings isn't what it was."""
        settings = self._read()
        if settings != self._settings:
            self._settings, self.groups = settings, describe(self._optimizer)

    def _read(self) -> list[list[Any]]:
        return [
            [value if isinstance(value, _PLAIN) else id(value) for name, value in group.items() if name not in MOVING]
            for group in self._optimizer.param_groups
        ]


_PLAIN = (bool, int, float, str, tuple, type(None))
