"""A wrapper as accelerate makes it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def wrapped(inner: Optimizer) -> Any:
    """An `Optimizer` by its class alone: its constructor never calls its parent's, and all calls go to ``inner``."""

    def take(self: Any, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    methods = {
        "__module__": "accelerate.optimizer",
        "__init__": take,
        "param_groups": property(lambda self: self.optimizer.param_groups),
        "state": property(lambda self: self.optimizer.state),
        "step": lambda self, closure=None: self.optimizer.step(closure),
        "zero_grad": lambda self, set_to_none=True: self.optimizer.zero_grad(set_to_none),
    }
    return type("AcceleratedOptimizer", (Optimizer,), methods)(inner)
