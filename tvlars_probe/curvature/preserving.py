"""Putting back, bit for bit, whatever computing with somebody else's model may touch.

A forward pass may write: embeddings with ``max_norm`` rescale their rows, lazy layers make buffers, others fill caches
and count calls. A backward pass may add to gradients. So a model computes on copies, and gets its own things back.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tvlars_probe.errors import UserError
from tvlars_probe.shards import shard_of
from tvlars_probe.whole_tensors import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAPPINGS, _SEQUENCES = (dict, OrderedDict, defaultdict, Counter), (list, deque)


@contextlib.contextmanager
def preserved(*roots: nn.Module) -> Iterator[None]:
    """Put modules, and what all code of the process shares, back at the end, also after an exception.

    Inside, parameters, buffers, and the tensors and arrays that modules hold in attributes, lists and dicts have copies
    of their data, and no parameter has a gradient. A parameter stays the same object. At the end it has its own memory
    again, with its gradient, hooks, ``requires_grad`` and version counter. Whatever a module has gained goes, and what
    it has lost or exchanged comes back: modes, buffers, submodules, hooks, attributes, the contents of its lists, dicts
    and sets, and its generators of random numbers. Objects of other classes are left as they are. Back come also the
    hooks of all modules, the random generators (Python's, NumPy's, torch's on the CPU and on the modules' CUDA
    devices), torch's default type, its choice of deterministic algorithms, and the weights of ``parametrize.cached``.

    Raises:
        UserError: a parameter or buffer has no shape yet.
    """
    modules = list({id(module): module for root in roots for module in root.modules()}.values())
    parameters = list({id(p): p for root in roots for p in root.parameters()}.values())
    tensors = [*parameters, *(buffer for root in roots for buffer in root.buffers())]
    if any(is_lazy(tensor) for tensor in tensors):
        raise UserError("the model has lazy layers without a shape: make one forward pass before it is measured")
    with _process_preserved({t.device for t in tensors if t.device.type == "cuda"}), contextlib.ExitStack() as stack:
        for p in parameters:
            _keep_parameter(stack, p)
        holders = _Holders(stack)
        for hooks in (every_module._global_backward_hooks, every_module._global_backward_pre_hooks):
            holders.keep(hooks)
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                _keep_script(stack, module)
            else:
                holders.keep(module.__dict__)
        yield


@contextlib.contextmanager
def _process_preserved(devices: set[torch.device]) -> Iterator[None]:
    """Put back what all code of the process shares: see `preserved`."""
    python, legacy, cached = random.getstate(), np.random.get_state(), (parametrize._cache_enabled, parametrize._cache)
    dtype, mode = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(devices=devices):
        try:
            # Inside parametrize.cached() weights are computed once, and would stay those of other parameters.
            parametrize._cache_enabled, parametrize._cache = 0, {}
            yield
        finally:
            parametrize._cache_enabled, parametrize._cache = cached
            random.setstate(python)
            np.random.set_state(legacy)
            torch.set_default_dtype(dtype)
            if torch.get_deterministic_debug_mode() != mode:
                torch.set_deterministic_debug_mode(mode)


def _keep_parameter(stack: contextlib.ExitStack, p: Tensor) -> None:
    """Give a parameter a copy of its data and no gradient, until ``stack`` is left."""
    data, grad, requires_grad = p.data, p.grad, p.requires_grad
    hooks, late_hooks = p._backward_hooks, p._post_accumulate_grad_hooks
    kept = {**(late_hooks or {})}

    # FSDP gathers a DTensor from memory of its own, of which the shard is a view: there the numbers are put back.
    shards = [(shard_of(data), shard_of(data).clone())] if is_dtensor(p) else []

    def put_back() -> None:
        for shard, numbers in shards:
            shard.copy_(numbers)
        if not shards:
            p.data = data
        p.grad, p.requires_grad, p._backward_hooks = grad, requires_grad, hooks
        # torch goes on with a dict of these hooks that is exchanged, so its contents are.
        if p._post_accumulate_grad_hooks is not None:
            refill(p._post_accumulate_grad_hooks, kept)
        p._post_accumulate_grad_hooks = late_hooks

    # A graph of the caller's that has saved p refuses a backward pass after p's version has moved on.
    stack.enter_context(torch.autograd.grad_mode._unsafe_preserve_version_counter(p))
    stack.callback(put_back)
    if not shards:
        p.data = _copy(data)
    # The very tensors are put back, not copies of their values: DDP, for one, holds gradients as views of its buckets.
    p.grad = None


def _keep_script(stack: contextlib.ExitStack, module: torch.jit.ScriptModule) -> None:
    """Keep the mode and the buffers of a module whose attributes aren't Python's."""
    stack.callback(setattr, module, "training", module.training)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            stack.callback(module._buffers.__setitem__, name, buffer)
            module._buffers[name] = _copy(buffer)


def _copy(tensor: Tensor) -> Tensor:
    """A leaf with a copy of the data, its strides included, that can be written to even where the caller's can't."""
    with torch.inference_mode(False):
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)


class _Holders:
    """Keeps what dicts, lists and sets hold, the nested ones included, until a stack is left."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack, self._seen = stack, set[int]()
        # By the original: what several modules hold is one tensor inside, too.
        self._copies: dict[int, Any] = {}

    def keep(self, holder: Any) -> None:
        """Keep the contents of ``holder``, and put copies in place of the tensors and arrays in it."""
        if id(holder) in self._seen:
            return
        self._seen.add(id(holder))
        contents = holder.copy()
        self._stack.callback(refill, holder, contents)
        if isinstance(contents, set):
            return
        for key, value in contents.items() if isinstance(contents, dict) else enumerate(contents):
            if type(value) in (*_MAPPINGS, *_SEQUENCES, set):
                self.keep(value)
            # Parameters are kept by themselves. What has been computed from them belongs to a graph of the caller's.
            elif isinstance(value, np.ndarray) or (
                isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_leaf
            ):
                if id(value) not in self._copies:
                    self._copies[id(value)] = _copy(value) if isinstance(value, Tensor) else value.copy()
                holder[key] = self._copies[id(value)]
            else:
                self._keep_generator(value)

    def _keep_generator(self, value: Any) -> None:
        """Keep the state of a generator of random numbers, if ``value`` is one."""
        if isinstance(value, torch.Generator | np.random.RandomState):
            self._stack.callback(value.set_state, value.get_state())  # type: ignore[arg-type]
        elif isinstance(value, random.Random):
            self._stack.callback(value.setstate, value.getstate())
        elif isinstance(value, np.random.Generator):
            self._stack.callback(setattr, value.bit_generator, "state", value.bit_generator.state)


def refill(holder: Any, contents: Any) -> None:
    """Let ``holder`` hold the very ``contents`` again, in their order."""
    if isinstance(contents, set):
        holder.intersection_update(contents)
        holder.update(contents)
    elif isinstance(contents, dict):
        # Key by key: a module's attributes are never all gone, whatever interrupts this.
        for key in [key for key in holder if key not in contents]:
            del holder[key]
        holder.update(contents)
        if list(holder) != list(contents):
            for key, value in contents.items():
                del holder[key]
                holder[key] = value
    elif len(holder) != len(contents) or any(map(operator.is_not, holder, contents)):
        holder.clear()
        holder.extend(contents)
