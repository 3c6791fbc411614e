"""Several optimizers as one: what a loop, a schedule and a checkpoint that know of one optimizer are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class CombinedOptimizer(Optimizer):
    """Steps several optimizers, each of parameters of its own, one after the other.

    Its parameter groups are those of all of them, in order, and the very same objects: a schedule that writes a rate
    into a group here has written it there. So is its state, and one `state_dict` holds all.
    `tvlars_probe.describe` describes each group as that of its own optimizer, and a recorder records the optimizers
    inside.

    Args:
        optimizers: the optimizers, in the order in which they step.

    Raises:
        ValueError: two of them hold the same parameter, or there is none.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers: list[Optimizer] = []  # none yet: groups are taken over below
        # torch keeps the very dicts that it is given.
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self.optimizers = list(optimizers)
        for one in optimizers:
            self.state.update(one.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of each; ``closure`` is called once, before the first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a further group: it doesn't say which of the optimizers is to step it.

        Raises:
            UserError: always, once the optimizer is made.
        """
        if self.optimizers:
            raise UserError("a CombinedOptimizer takes no further group: make it anew from optimizers that hold it")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # puts new groups and a new state in place of the old ones
        self._share()

    def _share(self) -> None:
        """Give each optimizer its own part of the groups, and the state of all."""
        begin = 0
        for one in self.optimizers:
            end = begin + len(one.param_groups)
            one.__setstate__({"state": self.state, "param_groups": self.param_groups[begin:end]})
            begin = end
