"""BatchNorm while a Hessian is computed: three modes, each of which makes the loss another function of the weights.

- eval: the layers use their running statistics, which are constants.
- train: the layers use the statistics of the whole sample, and these are differentiated too.
- frozen-batch: the layers use the statistics of the whole sample, held constant.

In eval and frozen-batch mode the loss is a sum over samples, so the Hessian doesn't depend on how the sample is cut
into batches or spread over ranks. In train mode the loss of a sample depends on all others: the sample is never cut,
and over several ranks the statistics are summed inside the graph.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tvlars_probe.collectives import all_reduce_sum
from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tvlars_probe.collectives import Ranks

    Measured = dict[nn.Module, list[tuple[Tensor, Tensor]]]


def check_bn_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        UserError: ``mode`` is none of `BN_MODES`.
    """
    if mode not in BN_MODES:
        raise unknown("BatchNorm mode", mode, BN_MODES)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The model's BatchNorm layers."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextlib.contextmanager
def batch_norm_mode(model: nn.Module, mode: str, shards: Ranks, forward: Callable[[], object]) -> Iterator[None]:
    """Put the BatchNorm layers of a model into ``mode``.

    Args:
        model: in evaluation mode. This changes its modes and buffers; the caller puts them back.
        mode: "eval", "train" or "frozen-batch".
        shards: the ranks that hold the sample.
        forward: passes this rank's whole sample through the model.

    Raises:
        UserError: a layer can't be put into this mode.
    """
    layers = batch_norms(model)
    if not layers:
        yield
    elif mode == "eval":
        if any(layer.running_mean is None for layer in layers):
            raise UserError(
                "a BatchNorm layer keeps no running statistics (track_running_stats=False): use mode 'train' or "
                "'frozen-batch'"
            )
        yield
    elif mode == "frozen-batch":
        with _measured_statistics(layers, shards) as measured:
            forward()
        # The statistics of the sample now stand in the layers' running ones, so evaluation mode uses them.
        with _eval_statistics(layers), _recalled_statistics(measured):
            yield
    else:
        with _differentiated_statistics(layers, shards):
            yield


@contextlib.contextmanager
def _measured_statistics(layers: list[_BatchNorm], shards: Ranks) -> Iterator[Measured]:
    """Let each layer overwrite its running statistics by those of its input, over all ranks, in the next forward pass.

    Yields:
        each layer's (mean, variance), one pair per call: a layer may be called more than once in a pass.
    """
    measured: Measured = {layer: [] for layer in layers}

    def measure(layer: nn.Module, args: tuple[Any, ...]) -> None:
        with torch.no_grad():
            # Before the layer's own forward, which uses what is set here. Hence the layers after it see, and measure,
            # the input that they will have once all statistics are frozen: one pass suffices for all layers.
            layer.running_mean, layer.running_var = _statistics(args[0], shards)
            measured[layer].append((layer.running_mean, layer.running_var))

    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_eval_statistics(layers))
        for handle in handles:
            stack.callback(handle.remove)
        with torch.no_grad():
            yield measured


@contextlib.contextmanager
def _recalled_statistics(measured: Measured) -> Iterator[None]:
    """Give a layer that is called several times in a pass the statistics of each call, in every later pass."""

    def recall(layer: nn.Module, _: tuple[Any, ...]) -> None:
        # The list turns by one with each call: after every whole pass it is where it was at the start.
        mean, var = measured[layer].pop(0)
        measured[layer].append((mean, var))
        layer.running_mean, layer.running_var = mean, var

    with contextlib.ExitStack() as stack:
        for layer, statistics in measured.items():
            if len(statistics) > 1:
                stack.callback(layer.register_forward_pre_hook(recall).remove)
        yield


@contextlib.contextmanager
def _eval_statistics(layers: list[_BatchNorm]) -> Iterator[None]:
    """Let all layers use running statistics, even those made with track_running_stats=False."""
    tracked = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = True
        yield
    finally:
        for layer, flag in zip(layers, tracked, strict=True):
            layer.track_running_stats = flag


@contextlib.contextmanager
def _differentiated_statistics(layers: list[_BatchNorm], shards: Ranks) -> Iterator[None]:
    """Let each layer normalise by the statistics of its input over all ranks, inside the graph.

    On one rank that is the layer's own training mode. It also moves the running statistics, but the objective has put
    copies in their place. Over several ranks `_statistics_over_ranks` replaces the layer's forward.
    """

    def check(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        # Counted over all ranks: a rank's single value is enough if another rank has one too.
        count = shards.sum(torch.tensor([x.numel() // x.shape[1]], device=x.device)).item()
        if count <= 1:
            raise UserError(
                "BatchNorm in train mode has no variance with one value per channel: use more samples, or mode 'eval'"
            )

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(check).remove)
        # Our own synchronised layer would sum over the process group, whichever ranks hold the sample.
        if shards.world_size == 1 and not any(map(is_our_own, layers)):
            for layer in layers:
                layer.training = True  # the objective puts modes back
            yield
        else:
            with _statistics_over_ranks(layers, shards):
                yield


@contextlib.contextmanager
def _statistics_over_ranks(layers: list[_BatchNorm], shards: Ranks) -> Iterator[None]:
    """Replace each layer's forward by one whose statistics are sums over the ranks.

    Raises:
        UserError: a layer's class has a forward of its own, which may do more than normalise.
    """
    # The exception is our own synchronised layer, whose forward is this one's arithmetic.
    for layer in layers:
        if type(layer).forward is not _BatchNorm.forward and not is_our_own(layer):
            raise UserError(
                f"{type(layer).__name__} has a forward of its own, which can't take its statistics over several ranks: "
                f"use one rank, or mode 'eval' or 'frozen-batch'"
            )

    def normalise(layer: _BatchNorm, x: Tensor) -> Tensor:
        mean, var = _statistics(x, shards)
        y = (x - _per_channel(mean, x)) * _per_channel(torch.rsqrt(var + layer.eps), x)
        return y if layer.weight is None else y * _per_channel(layer.weight, x) + _per_channel(layer.bias, x)

    # An attribute of the instance hides the method of its class; another tool may have set one before.
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = normalise.__get__(layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def is_our_own(layer: _BatchNorm) -> bool:
    """Whether a layer is of this package: one that sums its statistics over the ranks of the process group."""
    return type(layer).__module__.startswith("tvlars_probe.")


def _statistics(x: Tensor, shards: Ranks) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel (dimension 1), over all ranks; differentiable."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if shards.world_size == 1:
        var, mean = torch.var_mean(x, axes, correction=0)
        return mean, var
    count = shards.sum(torch.tensor([x.numel() // x.shape[1]], device=x.device))
    # Two sums, one after the other: E[x²] − E[x]² in a single one would cancel where the mean is large.
    mean = all_reduce_sum(x.sum(axes), shards.group) / count
    centred = x - _per_channel(mean, x)
    return mean, all_reduce_sum(centred.square().sum(axes), shards.group) / count


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))
