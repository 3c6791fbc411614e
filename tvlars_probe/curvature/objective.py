"""The function whose curvature is asked for: a model's mean loss over a fixed sample."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.batch_norm import batch_norm_mode, batch_norms, check_bn_mode
from tvlars_probe.errors import NonFiniteLossError, UserError
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Batch = tuple[Tensor, ...]
    Compute = Callable[[nn.Module, Batch], Tensor]


def supervised(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """``loss_fn(model(inputs), targets)`` of batches that are pairs."""

    def compute(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return loss_fn(model(inputs), targets)

    return compute


class Objective:
    """f(w) = (1/N) Σ_s ℓ_s(w) over N samples, in batches of any size, over the ranks that hold them.

    Inside `held` the model is in the mode asked for, dropout and stochastic depth off, hooks on parameters' gradients
    off; afterwards modes, buffers, gradients, hooks and random generators are what they were.

    Args:
        model: the model itself, not a DDP wrapper.
        compute: mean loss of a batch by the model, for instance `supervised`.
        batches: this rank's part of the sample, each a tuple of tensors whose first dimension counts samples.
        bn_mode: see `tvlars_probe.curvature.batch_norm`.
        shards: the ranks that hold the sample.

    Raises:
        UserError: there is no sample, or train-mode BatchNorm with a sample in several batches.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Compute,
        batches: Sequence[Batch],
        *,
        bn_mode: str = "eval",
        shards: Ranks | None = None,
    ) -> None:
        check_bn_mode(bn_mode)
        self.model, self.compute, self.bn_mode = model, compute, bn_mode
        self.batches = list(batches)
        self.shards = shards or Ranks()
        mine = sum(len(batch[0]) for batch in self.batches)
        counts = self.shards.sum(torch.tensor([mine, int(mine == 0)], device=self.device))
        self.samples, idle = (int(count) for count in counts.tolist())
        if idle:
            raise UserError(f"the sample is too small: {self.samples} samples over {self.shards.world_size} rank(s)")
        if bn_mode == "train" and len(self.batches) > 1 and batch_norms(model):
            raise UserError(
                f"BatchNorm in train mode takes statistics over the whole sample, which must be one batch "
                f"(got {len(self.batches)}): give it whole, or use mode 'frozen-batch' or 'eval'"
            )
        self._holds = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def is_held(self) -> bool:
        """Whether this is inside `held`."""
        return self._holds > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put the model into the state in which it is probed; everything is put back, also after an exception."""
        if self._holds:
            yield
            return
        self._holds += 1
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with (
                torch.random.fork_rng(devices=devices),
                torch.autocast(self.device.type, enabled=False),
                torch.inference_mode(False),
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),  # the fused kernels of attention can't be differentiated twice
                _restored(self.model),
                _plain(self.model),
            ):
                self.shards.broadcast(self.model.buffers())
                self.model.eval()
                with batch_norm_mode(self.model, self.bn_mode, self.shards, self._forward):
                    yield
        finally:
            self._holds -= 1

    def _forward(self) -> None:
        """All of this rank's sample in one pass, as statistics need it."""
        if self.batches:
            self.compute(self.model, tuple(torch.cat(parts) for parts in zip(*self.batches, strict=True)))

    def term(self, index: int) -> Tensor:
        """Batch ``index``'s share of f: the sum over all batches of all ranks is f(w). Use it inside `held`."""
        batch = self.batches[index]
        return self.compute(self.model, batch) * (len(batch[0]) / self.samples)

    def loss(self) -> float:
        """f(w).

        Raises:
            NonFiniteLossError: it is not.
        """
        total = torch.zeros(1, dtype=accumulation_dtype(self.device), device=self.device)
        with self.held(), torch.no_grad():
            for index in range(len(self.batches)):
                total += self.term(index).to(total)
        value = self.shards.sum(total).item()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the model's loss on the sample is {value}: there is no curvature to compute")
        return value


@contextlib.contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Without hooks on the parameters' gradients, which would change the Hessian, and without compiled forwards."""
    hooks = [(p, p._backward_hooks) for p in model.parameters() if p._backward_hooks]
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    try:
        for p, _ in hooks:
            p._backward_hooks = None
        for module, _ in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for p, kept in hooks:
            p._backward_hooks = kept
        for module, call in compiled:
            module._compiled_call_impl = call


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Modes and buffers are put back: while inside, the model has copies of its buffers."""
    modes = [(module, module.training) for module in model.modules()]
    buffers: list[tuple[dict[str, Any], str, Tensor | None]] = [
        (module._buffers, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        for home, name, buffer in buffers:
            home[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for home, name, buffer in buffers:
            home[name] = buffer
        for p, gradient in gradients:
            p.grad = gradient
