"""The model inside the wrappers that training puts around it."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# By their names: torch's class lives in torch._dynamo, which `import torch` leaves out and which is slow to import;
# Lightning Fabric may not be installed.
_INNER = {"OptimizedModule": "_orig_mod", "_FabricModule": "_forward_module"}
"""The attribute in which a wrapper holds the model, by the wrapper's class."""


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP, DataParallel, torch.compile and Lightning Fabric."""
    while True:
        inner = module.__dict__["_modules"].get(_INNER.get(type(module).__name__, ""))
        if isinstance(module, DistributedDataParallel | DataParallel):
            module = module.module
        elif isinstance(inner, nn.Module):
            module = inner
        else:
            return module


def joins_uneven_inputs(module: nn.Module | None) -> bool:
    """Whether DDP's ``join()`` is in force, under which ranks may make unlike numbers of steps."""
    return bool(getattr(getattr(module, "_join_config", None), "enable", False))
