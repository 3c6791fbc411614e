"""LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv:1708.03888).

The trust ratio scales the gradient before it enters the momentum buffer, and the learning rate is applied after the
buffer. The official TVLARS experiments do the same; their LARS is that of Barlow Twins.

Memory traffic of the CPU step, in passes over all parameters: before the update, w and g are read once each. No
implementation can avoid that, since q is a quotient of sums over the whole tensor. The inner product reads both again,
from cache where the tensor fits. Then one fused kernel reads w, g and the momentum buffer and writes w and the buffer:
these five passes are the least for a step with momentum, and all that torch's fused SGD makes. No pass serves recording
alone.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.optimizers.description_words import DENOMINATORS, EXCLUSIONS
from tvlars_probe.optimizers.kernels import add_decay, decayed_direction, descend, fused_sgd, scale_each, where_adapted
from tvlars_probe.optimizers.layerwise import NAN, LayerwiseOptimizer, as_float, require
from tvlars_probe.reductions import (
    Tensors,
    flat_views,
    inner_products_of_each,
    multi_tensor_dots,
    multi_tensor_norms,
    norm_of_square,
)
from tvlars_probe.shards import TensorFigures, shard_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.optim.optimizer import ParamsT

    from tvlars_probe.optimizers.description_words import Denominator, Exclusion
    from tvlars_probe.optimizers.joining import Update

# The fused kernel takes 1 − q, whose rounding error of 6e-17 is below 1e-9 of q down to this q.
_SMALLEST_FUSED_RATIO = 1e-7


class LARS(LayerwiseOptimizer):
    """LARS with heavy-ball momentum; by default the official implementation's numbers.

    For each tensor w with gradient g::

        d  = g + weight_decay·w
        q  = eta·‖w‖ / ‖d‖                 1 where either norm is zero, and for tensors left out of adaptation
        mu ← momentum·mu + q·d
        w  ← w − lr·mu

    Libraries disagree on what LARS is; ``denominator``, ``exclusion`` and ``trust_clip`` select among their versions.

    Args:
        params: parameters, named parameters, or groups with their own settings.
        lr: learning rate, lr >= 0.
        weight_decay: coupled decay λ, λ >= 0.
        momentum: 0 <= momentum < 1.
        eta: trust coefficient, eta >= 0.
        weight_decay_filter: leave tensors of at most one dimension (biases, normalisation) out of the decay.
        lars_adaptation_filter: leave the same tensors out of the adaptation: q = 1.
        denominator: "decayed" is ‖g + λw‖ (official; Barlow Twins), "sum" is ‖g‖ + λ‖w‖ (timm, lightly, apex,
            pytorch_optimizer from 4 on), "grad" is ‖g‖ (pytorch_optimizer before 4).
        exclusion: "ndim" leaves out of the adaptation what ``lars_adaptation_filter`` does (official). "undecayed" also
            leaves out tensors that are not decayed (timm, lightly, bolts).
        trust_clip: LARC's clipping, q ← min(q / lr, 1) where both norms are positive (apex); at lr = 0, q = 1. timm
            also clips the q = 1 of a zero norm, to min(1 / lr, 1); this class doesn't.
        foreach: True uses multi-tensor kernels on the CPU, too; accelerators always use them.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        eta: float = 0.001,
        weight_decay_filter: bool = False,
        lars_adaptation_filter: bool = False,
        *,
        denominator: Denominator = "decayed",
        exclusion: Exclusion = "ndim",
        trust_clip: bool = False,
        foreach: bool | None = None,
        _further: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        # The base class checks the settings at once, so a subclass's own settings must be among them here.
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "eta": eta,
                "weight_decay_filter": weight_decay_filter,
                "lars_adaptation_filter": lars_adaptation_filter,
                "denominator": denominator,
                "exclusion": exclusion,
                "trust_clip": trust_clip,
                "foreach": foreach,
                **_further,
            },
        )

    @classmethod
    def check(cls, group: dict[str, Any]) -> None:
        super().check(group)
        require("momentum", group["momentum"], "0 <= momentum < 1", 0 <= group["momentum"] < 1)
        require("eta", group["eta"], "0 <= eta < inf", 0 <= group["eta"] < math.inf)
        for name, allowed in (("denominator", DENOMINATORS), ("exclusion", EXCLUSIONS)):
            if group[name] not in allowed:
                raise ValueError(f"invalid {name}: {group[name]!r} (allowed: {', '.join(allowed)})")

    def adapts(self, group: dict[str, Any], p: Tensor) -> bool:
        return super().adapts(group, p) and (group["exclusion"] != "undecayed" or self.decay_of(group, p) != 0)

    def _factor(self, group: dict[str, Any]) -> float | Tensor:
        """The number that multiplies the ratio of norms in this step; on the device where `phi_of` is."""
        eta: float = group["eta"]
        return eta

    norm_cap = math.inf
    """The bound at which both norms of the ratio are clamped; LARS has none."""

    def _update_on_host(self, group: dict[str, Any], params: Tensors) -> Iterator[Sequence[float]]:
        grads = [self.aligned_grad(p) for p in params]
        vectors = [flat_views(p, grad) for p, grad in zip(params, grads, strict=True)]
        # This reads a large tensor only when its products are asked for, so that the update finds it in cache.
        each = inner_products_of_each(vectors, ((0, 0), (1, 1), (0, 1)))
        for p, grad, products in zip(params, grads, each, strict=True):
            yield self._update_one_on_host(group, p, grad, *products)

    def _update_one_on_host(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, ww: float, gg: float, wg: float
    ) -> Sequence[float]:
        lr, decay = as_float(group["lr"]), self.decay_of(group, p)
        weight_norm, grad_norm = norm_of_square(ww, p), norm_of_square(gg, grad)
        # direction + left·w is g + λw: the update takes the accurate sum also where the ratio uses another norm.
        decayed, direction, left = decayed_direction(p, grad, decay, weight_norm, grad_norm, wg)
        norms = {"decayed": decayed, "sum": grad_norm + decay * weight_norm, "grad": grad_norm}
        norm = norms[group["denominator"]]
        ratio, phi = 1.0, as_float(self.phi_of(group))
        if self.adapts(group, p) and weight_norm > 0 and norm > 0:
            ratio = as_float(self._factor(group)) * min(weight_norm, self.norm_cap) / min(norm, self.norm_cap)
            if group["trust_clip"]:
                ratio = min(ratio / lr, 1.0) if lr > 0 else 1.0
        elif not math.isnan(phi):
            phi = 1.0  # recorded as applied: φ multiplies only a trust ratio
        self._descend_on_host(group, p, direction, left, ratio, lr)
        return weight_norm, grad_norm, wg, norm, NAN, NAN, ratio, phi

    def _descend_on_host(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, decay: float, ratio: float, lr: float
    ) -> None:
        if not group["momentum"]:
            # Without a buffer, the ratio can be part of the rate.
            fused_sgd(p, grad, None, lr=lr * ratio, weight_decay=decay)
            return
        buffer = self.state_tensor(p, "momentum_buffer")
        if ratio < _SMALLEST_FUSED_RATIO:
            buffer.mul_(group["momentum"]).add_(grad.add(p, alpha=decay), alpha=ratio)
            p.add_(buffer, alpha=-lr)
        else:
            # With dampening = 1 − q the kernel's (1 − dampening)·(g + λw) is q·d.
            fused_sgd(p, grad, buffer, lr=lr, weight_decay=decay, momentum=group["momentum"], dampening=1.0 - ratio)

    def _update_on_device(self, group: dict[str, Any], params: Tensors) -> Update:
        weights = [shard_of(p) for p in params]
        # `_step_group` passes only parameters with a gradient; the condition is for the type checker.
        grads = [shard_of(p.grad, like=p) for p in params if p.grad is not None]
        decays = [self.decay_of(group, p) for p in params]
        norms, dots = [multi_tensor_norms(weights), multi_tensor_norms(grads)], multi_tensor_dots(weights, grads)
        # A copy, since the gradients belong to the caller. By a product: torch 2.6 has no multi-tensor clone.
        directions: Tensors = torch._foreach_mul(grads, 1.0)
        add_decay(directions, weights, decays)
        if group["denominator"] == "decayed":
            norms.append(multi_tensor_norms(directions))
        whole = yield TensorFigures(norms, [dots])
        weight_norm, grad_norm, *decayed = whole.norms
        (dots,) = whole.dots
        norm = decayed[0] if decayed else self._denominator_on_device(group, decays, weight_norm, grad_norm)
        adapted = [i for i, p in enumerate(params) if self.adapts(group, p)]
        ratio, phi = self._ratios_on_device(group, adapted, weight_norm, norm)
        scale_each([directions[i] for i in adapted], [ratio[i] for i in adapted])
        if group["momentum"]:
            buffers = [shard_of(self.state_tensor(p, "momentum_buffer")) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            directions = buffers
        descend(weights, directions, group["lr"])
        blank = torch.full_like(weight_norm, NAN)
        return torch.stack([weight_norm, grad_norm, dots, norm, blank, blank, ratio, phi])

    def _denominator_on_device(
        self, group: dict[str, Any], decays: list[float], weight_norm: Tensor, grad_norm: Tensor
    ) -> Tensor:
        """The norm that each tensor's ratio divides by, unclamped, where it isn't that of g + λw."""
        if group["denominator"] == "grad":
            return grad_norm
        # Multiplying by Python numbers sends none of the decays to the device as a tensor.
        scaled = [decay * norm for decay, norm in zip(decays, weight_norm.unbind(), strict=True)]
        return grad_norm + torch.stack(scaled)

    def _ratios_on_device(
        self, group: dict[str, Any], adapted: list[int], weight_norm: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Trust ratio and φ of every tensor: both 1 where not adapted; φ is NaN for optimizers that have none."""
        factor, phi = self._factor(group), self.phi_of(group)
        if isinstance(factor, Tensor):
            # A group's parameters may be spread over devices.
            factor = factor.to(weight_norm.device, non_blocking=True)
        ratio = factor * weight_norm.clamp(max=self.norm_cap) / norm.clamp(max=self.norm_cap)
        if group["trust_clip"]:
            lr = group["lr"]
            if isinstance(lr, Tensor):
                # torch.where, not if: a branch on lr would wait for the device.
                ratio = torch.where(lr > 0, (ratio / lr).clamp(max=1.0), 1.0)
            else:
                ratio = (ratio / lr).clamp(max=1.0) if lr > 0 else torch.ones_like(ratio)
        positive = (weight_norm > 0) & (norm > 0)
        ratio = where_adapted(adapted, torch.where(positive, ratio, 1.0))
        if isinstance(phi, Tensor):
            phis = torch.ones_like(ratio) * phi.to(ratio.device, non_blocking=True)
        elif math.isnan(phi):
            return ratio, torch.full_like(ratio, NAN)
        else:
            phis = torch.full_like(ratio, phi)
        return ratio, where_adapted(adapted, torch.where(positive, phis, 1.0))
