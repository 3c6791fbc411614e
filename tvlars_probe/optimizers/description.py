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

from torch import Tensor
from torch.optim import Optimizer

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.combined import CombinedOptimizer
from tvlars_probe.optimizers.foreign_rules import FOREIGN, is_described_version
from tvlars_probe.optimizers.given import tensors_of, unwrapped
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.layerwise import LayerwiseOptimizer
from tvlars_probe.optimizers.registry import OPTIMIZERS
from tvlars_probe.optimizers.rules import TORCH
from tvlars_probe.whole_tensors import refuse_spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.optimizers.rules import Rule

RULES: Mapping[str, Rule] = {**TORCH, **FOREIGN, **{entry.path: entry.rule for entry in OPTIMIZERS.values()}}
"""The rule of each described class, by the class's full name: no package has to be imported for its entry."""

MOVING = {"params", "lr", "initial_lr", "num_updates", "step"}
"""Entries of a parameter group that schedules or steps change in every update. No description depends on them."""

_HARMLESS = {name for name in vars(Optimizer) if name != "step"} | {"_abc_impl"}
"""Methods of torch's base class, which a subclass may override without changing what a step does; and what Python
itself gives each subclass of an abstract class."""


class Describe:
    """Describes each parameter group of an optimizer by its present settings.

    Called with an optimizer it returns a tuple of one `GroupDescription` per parameter group. A group's ``is_known`` is
    False where the class has no rule, or where a description can't express one of the group's settings. Of a wrapper
    that only delegates (accelerate's), the optimizer inside is described, and of a `CombinedOptimizer` those that it
    combines. A subclass is described as its nearest
    described parent is, unless it overrides a method or attribute on which the step depends.

    Settings that are changed later aren't followed; `LiveDescription` follows them.

    ``register`` gives a class a function that describes it, as `functools.singledispatch` does.

    Raises:
        TypeError: the argument has no parameter groups, so it is not an optimizer.
        UserError: the optimizer is spread over ranks, or its parameters are, otherwise than as DTensors; or a
            registered function doesn't return one description per group.
    """

    def __init__(self) -> None:
        self._registered = functools.singledispatch(_by_rule)

    @property
    def register(self) -> Any:
        """``register(cls)`` decorates a function of an optimizer of that class; so does ``register(cls, function)``."""
        return self._registered.register

    def __call__(self, optimizer: Any) -> tuple[GroupDescription, ...]:
        optimizer = unwrapped(optimizer)
        if getattr(optimizer, "param_groups", None) is None:
            raise TypeError(f"{type(optimizer).__name__} is no optimizer: it has no param_groups")
        refuse_spread(tensors_of(optimizer), takes_dtensors=True)
        return self.groups(optimizer)

    def groups(self, optimizer: Optimizer) -> tuple[GroupDescription, ...]:
        """The descriptions of an optimizer that `optimizers_in` has let in: its tensors aren't looked at again."""
        if isinstance(optimizer, CombinedOptimizer):
            return tuple(description for one in optimizer.optimizers for description in self.groups(one))
        kind, groups = type(optimizer), optimizer.param_groups
        parent = self._described_parent(kind)
        if parent is not None and _overrides(kind, parent):
            found = (_unknown(kind),) * len(groups)
        elif parent in self._registered.registry:
            found = _checked(self._registered.registry[parent](optimizer), kind, len(groups))
        else:
            found = _by_rule(optimizer)
        # A rule names the class that it was written for; the group goes by the name of its own class.
        return tuple(replace(one, optimizer=kind.__name__, module=kind.__module__) for one in found)

    def _described_parent(self, kind: type[Any]) -> type[Any] | None:
        """The class itself or its nearest parent that is registered or has a rule; None where none is."""
        known = self._registered.registry.keys() - {object}
        return next((one for one in kind.__mro__ if one in known or _path(one) in RULES), None)


def _checked(found: Any, kind: type[Any], groups: int) -> tuple[GroupDescription, ...]:
    """What a registered function returned, if that is one description per group.

    Raises:
        UserError: it isn't.
    """
    given = tuple(found) if isinstance(found, tuple | list) else None
    if given is None or len(given) != groups or not all(isinstance(one, GroupDescription) for one in given):
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in given or ()))
        got = f"{found!r:.60}" if given is None else f"{len(given)} ({kinds})" if given else "none"
        raise UserError(
            f"the function registered with describe for {kind.__name__} must return a tuple of one GroupDescription "
            f"per parameter group, {groups} here; it returned {got}"
        )
    return given


def _by_rule(optimizer: Any) -> tuple[GroupDescription, ...]:
    """The descriptions that the rule of the optimizer's class gives, or of the nearest parent that has one."""
    kind = type(optimizer)
    path = next((path for one in kind.__mro__ if (path := _path(one)) in RULES), None)
    rule = RULES[path] if path is not None and is_described_version(path) else None
    # apex and pytorch_optimizer keep some settings (adam_w_mode, maximize) on the optimizer, not in its groups.
    further: dict[str, Any] = {
        name: value for name, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)
    }
    further["defaults"] = getattr(optimizer, "defaults", {})
    return tuple(_described(kind, rule, {**further, **group}) for group in optimizer.param_groups)


def _described(kind: type[Any], rule: Rule | None, settings: Mapping[str, Any]) -> GroupDescription:
    if rule is None:
        return _unknown(kind)
    try:
        return rule(settings) or _unknown(kind)
    # This version of the class lacks a setting that the rule reads, or a user's setting is of another kind.
    except (KeyError, TypeError, ValueError):
        return _unknown(kind)


def _unknown(kind: type[Any]) -> GroupDescription:
    unknown = GroupDescription.unknown(kind.__name__, kind.__module__)
    # Whatever a subclass of ours does, it says in `last_step` what it has used.
    return replace(unknown, norms="last_step") if issubclass(kind, LayerwiseOptimizer) else unknown


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


describe = Describe()


def updates_made(group: Mapping[str, Any]) -> float | None:
    """The number of updates that an optimizer has counted in a parameter group (TVLARS' t); None if it counts none.

    What stands there is returned unchecked: in a damaged checkpoint it may be NaN.
    """
    count = group.get("num_updates")
    return count.item() if isinstance(count, Tensor) else count


class LiveDescription:
    """An optimizer's descriptions, renewed when a setting has changed: some schedules change decay or momentum.

    Attributes:
        groups: one description per parameter group.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = self._read()
        self.groups = describe.groups(optimizer)

    def renew(self) -> None:
        """Describe the optimizer again if a setting has changed since the last description."""
        settings = self._read()
        if settings != self._settings:
            self._settings, self.groups = settings, describe.groups(self._optimizer)

    def _read(self) -> list[list[Any]]:
        # A registered function may read the optimizer's own attributes, too. Private ones are torch's counters.
        own = {
            name: value
            for name, value in vars(self._optimizer).items()
            if not name.startswith("_") and isinstance(value, _PLAIN)
        }
        # Comparing tensors would compare element by element and wait for their device: identity stands for them.
        return [
            [
                value if isinstance(value, _PLAIN) else id(value)
                for name, value in settings.items()
                if name not in MOVING
            ]
            for settings in (own, *self._optimizer.param_groups)
        ]


_PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of settings that `LiveDescription` compares by value; all others are compared by identity."""
