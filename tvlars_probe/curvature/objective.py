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
    """Return the function that computes ``loss_fn(model(inputs), targets)`` of a batch (inputs, targets)."""

    def compute(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return loss_fn(model(inputs), targets)

    return compute


class Objective:
    """f(w) = (1/N) Σ_s ℓ_s(w) over N samples, in batches of any size, over the ranks that hold them.

    Inside `held` BatchNorm is in the mode asked for, and dropout, stochastic depth and hooks on the parameters'
    gradients are off. Afterwards modes, buffers, gradients, hooks and random generators are what they were.

    Args:
        model: the model itself, not a DDP wrapper.
        compute: the mean loss of a batch as a function of model and batch, for instance `supervised`.
        batches: this rank's part of the sample. A batch is a tuple of tensors whose first dimension counts samples.
        bn_mode: mode of BatchNorm; see `tvlars_probe.curvature.batch_norm`.
        shards: the ranks that hold the sample; by default this process alone.

    Raises:
        UserError: a rank has no samples; an unknown mode; or train-mode BatchNorm and several batches on this rank.
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
        # Every rank learns of another's empty share, and all raise: none is left waiting in a later collective.
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
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def is_held(self) -> bool:
        """Whether the model is inside `held`."""
        return self._holds > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put the model into the state in which it is probed; everything is put back, also after an exception.

        Inside another `held` of the same objective it does nothing.
        """
        if self._holds:
            yield
            return
        self._holds += 1
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with (
                torch.random.fork_rng(devices=devices),
                # The caller may train in bfloat16, where a Hessian keeps two digits, or evaluate without gradients.
                torch.autocast(self.device.type, enabled=False),
                torch.inference_mode(False),
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),  # the fused kernels of attention can't be differentiated twice
                _restored(self.model),
                _plain(self.model),
            ):
                # Running statistics differ from rank to rank. The first rank's go into the copies that _restored made.
                self.shards.broadcast(self.model.buffers())
                self.model.eval()
                with batch_norm_mode(self.model, self.bn_mode, self.shards, self._forward):
                    yield
        finally:
            self._holds -= 1

    def _forward(self) -> None:
        """Pass all of this rank's sample through the model at once, as statistics of the sample need it."""
        if self.batches:
            self.compute(self.model, tuple(torch.cat(parts) for parts in zip(*self.batches, strict=True)))

    def term(self, index: int, batch: Batch | None = None) -> Tensor:
        """Batch ``index``'s share of f, 0-dim; the shares of all ranks' batches sum to f(w). Use it inside `held`.

        Args:
            index: of the batch.
            batch: its tensors in another type, to be used instead.
        """
        batch = self.batches[index] if batch is None else batch
        return self.compute(self.model, batch) * (len(batch[0]) / self.samples)

    def loss(self) -> float:
        """f(w), on every rank.

        Raises:
            NonFiniteLossError: f(w) isn't finite.
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
    """Take off hooks on the parameters' gradients, and compiled forwards.

    A hook changes the gradient, and would change the Hessian. Compiled forwards can't be differentiated twice.
    """
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
    """Put back modes, buffers and gradients at the end; inside, the model has copies of its buffers."""
    modes = [(module, module.training) for module in model.modules()]
    buffers: list[tuple[dict[str, Any], str, Tensor | None]] = [
        (module._buffers, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()
    ]
    # The very tensors are put back, not copies of their values: DDP, for one, holds gradients as views of its buckets.
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
