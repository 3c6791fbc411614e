"""A model without what would make its loss another function while it is measured: modes, hooks, compiled forwards."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as every_module


def make_plain(root: nn.Module) -> None:
    """Put all modules into evaluation mode, and take off hooks on gradients, and compiled forwards; for good.

    A hook changes the gradient, and would change the Hessian. Compiled forwards can't be differentiated twice.
    """
    for p in root.parameters():
        p._backward_hooks = None
        if p._post_accumulate_grad_hooks:
            p._post_accumulate_grad_hooks.clear()
    for module in root.modules():
        module.training = False  # not by eval(), in which a class of its own may do more
        if not isinstance(module, torch.jit.ScriptModule):
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
            module._compiled_call_impl = None
    every_module._global_backward_hooks.clear()
    every_module._global_backward_pre_hooks.clear()
