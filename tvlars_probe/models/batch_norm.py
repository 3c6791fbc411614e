"""Batch normalisation over the batch of all ranks (Ioffe and Szegedy 2015), made of differentiable sums.

torch's SyncBatchNorm refuses CPU tensors and can't be differentiated twice. This one is ordinary arithmetic around
`all_reduce_sum`. It works on every device, for ranks with any number of samples, even none, and to any order of
derivatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from tvlars_probe.collectives import sum_over_ranks, world_size

if TYPE_CHECKING:
    from collections.abc import Iterator


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm for inputs of two or more dimensions, with the statistics of all ranks' samples together in training.

    y = (x − mean)/√(var + eps)·weight + bias, with the mean and the biased variance of each channel (dimension 1) over
    the samples of every rank. As in torch, the running variance is the unbiased one. Every rank must call the layer
    equally often. With one rank it is torch's own BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions (got {input.ndim})")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        measures = self.training or self.running_mean is None
        if not measures or world_size() == 1:
            if not input.numel():
                # torch refuses to normalise nothing in training.
                return input * self._shaped(self.weight, input) if self.affine else input
            y: Tensor = super().forward(input)
            return y
        mean, var, count = moments(input)
        if self.training and self.track_running_stats:
            self._remember(mean.detach(), var.detach(), count)
        y = (input - self._shaped(mean, input)) * self._shaped(torch.rsqrt(var + self.eps), input)
        return y * self._shaped(self.weight, input) + self._shaped(self.bias, input) if self.affine else y

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards ``mean`` and ``var``, the biased variance over ``count`` values."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum torch averages all batches so far: the n-th counts 1/n.
        share: Any = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((var * (count / (count - 1).clamp(min=1))).to(self.running_var), share)

    @staticmethod
    def _shaped(values: Tensor, x: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (x.ndim - 2))


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, and the number of values per channel, over all ranks; differentiable.

    It takes two sums over the ranks, one after the other. The second adds squared distances from the mean. The formula
    E[x²] − E[x]² would need one sum only, but loses digits where the mean is large.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    # The count travels with the sums, which saves a collective.
    count = torch.full((1,), x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
    sums = sum_over_ranks(torch.cat([x.sum(axes), count]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = x - SynchronizedBatchNorm._shaped(mean, x)
    return mean, sum_over_ranks(centred.square().sum(axes)) / count, count


def standardized(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardise each column of ``z``, shape (samples, features), to mean 0 and variance 1 over all ranks' rows.

    It divides by √(var + eps) with the biased variance, as BatchNorm without weight, bias and running statistics does.
    """
    if world_size() == 1:
        return F.batch_norm(z, None, None, training=True, eps=eps)
    mean, var, _ = moments(z)
    return (z - mean) * torch.rsqrt(var + eps)


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm layer inside ``model``, in place, by a synchronised one with the same state."""
    # The walk is finished first, because each replacement changes what it walks over.
    for owner, name, layer in list(_batch_norms(model)):
        setattr(owner, name, _synchronized(layer))
    return model


def _batch_norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SynchronizedBatchNorm):
                yield owner, name, child


def _synchronized(layer: _BatchNorm) -> SynchronizedBatchNorm:
    new = SynchronizedBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    # The same tensors, not copies: an optimizer may hold the parameters already.
    new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    new.num_batches_tracked = layer.num_batches_tracked
    new.training = layer.training
    return new
