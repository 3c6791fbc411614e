"""The model inside the wrappers that training puts around it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel):
            module = module.module
        # By its name: the class lives in torch._dynamo, which `import torch` leaves out and which is slow to import.
        elif type(module).__name__ == "OptimizedModule" and isinstance(
            inner := module.__dict__["_modules"].get("_orig_mod"), nn.Module
        ):
            module = inner
        else:
            return module
