"""LAMB: layer-wise adaptive moments (You et al. 2020, arXiv:1904.00962, third version: no bias correction).

The CPU step walks each tensor in cache-sized blocks. One fused kernel reads g and both moments, and writes the moments
and the Adam direction r; the five inner products of the block are taken while it is in cache. In passes over all
parameters, the step reads w, g, m and v and writes m, v and r; once q is known, it reads w and r and writes w. These
are ten passes. Two more zero r and read the zeros, since the kernel adds to them. Any implementation needs all but the
passes over r; to form r again from m and v would cost as much as to write and read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.optimizers.description_words import NORM_CAP
from tvlars_probe.optimizers.kernels import (
    add_decay,
    decayed_direction,
    descend,
    fused_adam_direction,
    fused_sgd,
    scale_each,
    where_adapted,
    widened,
)
from tvlars_probe.optimizers.layerwise import NAN, LayerwiseOptimizer, as_float, require
from tvlars_probe.reductions import (
    Tensors,
    flat_views,
    inner_products,
    multi_tensor_dots,
    multi_tensor_norms,
    norm_of_square,
)
from tvlars_probe.shards import TensorFigures, shard_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim.optimizer import ParamsT

    from tvlars_probe.optimizers.joining import Update

# Elements per block: 4 MiB of each float32 tensor, which stays in the last cache. Smaller blocks cost more in kernel
# starts than they save.
_BLOCK = 1 << 20

# The inner products ⟨w,w⟩, ⟨g,g⟩, ⟨w,g⟩, ⟨r,r⟩, ⟨w,r⟩, as indices into (w, g, r).
_PAIRS = ((0, 0), (1, 1), (0, 1), (2, 2), (0, 2))


class LAMB(LayerwiseOptimizer):
    """LAMB as the official TVLARS experiments use it (from cybertronai/pytorch-lamb).

    For each tensor w with gradient g::

        m ← β₁·m + (1 − β₁)·g
        v ← β₂·v + (1 − β₂)·g²
        r = m / (√v + eps)
        d = r + weight_decay·w
        q = min(‖w‖, 10) / ‖d‖           1 where either norm is zero, and with ``adam``
        w ← w − lr·q·d

    The moments' bias is not corrected. Every tensor is decayed and adapted unless a filter leaves it out.

    Args:
        params: parameters, named parameters, or groups with their own settings.
        lr: learning rate, lr >= 0.
        betas: (β₁, β₂), each in [0, 1).
        eps: added to √v, not under the root, eps >= 0.
        weight_decay: decay λ, added to the direction as λw, >= 0.
        adam: switch the trust ratio off (q = 1).
        weight_decay_filter: leave tensors of at most one dimension out of the decay (not in the official LAMB).
        lars_adaptation_filter: leave the same tensors out of the adaptation (not in the official LAMB).
        trust_clip: q ← min(q, 1), known as LAMBC (timm).
        foreach: True uses multi-tensor kernels on the CPU, too; accelerators always use them.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adam: bool = False,
        *,
        weight_decay_filter: bool = False,
        lars_adaptation_filter: bool = False,
        trust_clip: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "adam": adam,
                "weight_decay_filter": weight_decay_filter,
                "lars_adaptation_filter": lars_adaptation_filter,
                "trust_clip": trust_clip,
                "foreach": foreach,
            },
        )

    @classmethod
    def check(cls, group: dict[str, Any]) -> None:
        super().check(group)
        if len(group["betas"]) != 2:
            raise ValueError(f"invalid betas: {group['betas']!r} (allowed: two numbers, each 0 <= beta < 1)")
        for index, beta in enumerate(group["betas"]):
            require(f"betas[{index}]", beta, "0 <= beta < 1", 0 <= beta < 1)
        require("eps", group["eps"], "eps >= 0", group["eps"] >= 0)

    def adapts(self, group: dict[str, Any], p: Tensor) -> bool:
        return not group["adam"] and super().adapts(group, p)

    def _update_on_host(self, group: dict[str, Any], params: Tensors) -> Iterator[Sequence[float]]:
        for p in params:
            yield self._update_one_on_host(group, p)

    def _update_one_on_host(self, group: dict[str, Any], p: Tensor) -> Sequence[float]:
        lr, decay = as_float(group["lr"]), self.decay_of(group, p)
        grad = self.aligned_grad(p)
        direction, (ww, gg, wg, rr, wr) = self._adam_direction(group, p, grad)
        weight_norm, grad_norm, adam_norm = map(norm_of_square, (ww, gg, rr), (p, grad, direction))
        # The pair (direction, decay) stands for r + λw from here on: the SGD kernel forms that sum as it descends.
        norm, direction, decay = decayed_direction(p, direction, decay, weight_norm, adam_norm, wr)
        ratio = 1.0
        if self.adapts(group, p) and weight_norm > 0 and norm > 0:
            ratio = min(weight_norm, NORM_CAP) / norm
            if group["trust_clip"]:
                ratio = min(ratio, 1.0)
        fused_sgd(p, direction, None, lr=lr * ratio, weight_decay=decay)
        return weight_norm, grad_norm, wg, norm, adam_norm, wr, ratio, NAN

    def _adam_direction(self, group: dict[str, Any], p: Tensor, grad: Tensor) -> tuple[Tensor, list[float]]:
        """Update the moments; return r and the inner products named by `_PAIRS`."""
        # The caller uses r up before the next tensor's turn, so that one scratch serves all.
        direction = self.scratch(p)
        m, v = self.state_tensor(p, "exp_avg"), self.state_tensor(p, "exp_avg_sq")
        totals = [0.0] * len(_PAIRS)
        blocks = [torch.split(t, _BLOCK) for t in flat_views(p, grad, m, v, direction.zero_())]
        for w_, g_, m_, v_, r_ in zip(*blocks, strict=True):
            fused_adam_direction(r_, g_, m_, v_, betas=group["betas"], eps=group["eps"])
            self.look_ahead(group, r_, g_, v_)
            totals = [a + b for a, b in zip(totals, inner_products((w_, g_, r_), _PAIRS), strict=True)]
        return direction, totals

    def look_ahead(self, group: dict[str, Any], direction: Tensor, grad: Tensor, exp_avg_sq: Tensor) -> None:
        """On the host path, turn a block of m / (√v + eps) into that of r, in place.

        LAMB has nothing to change. A subclass whose r has another numerator than m overrides this and `numerators`.
        """

    def numerators(self, group: dict[str, Any], grads: Tensors, exp_avgs: Tensors) -> Tensors:
        """On the device path, the numerator of r for every tensor: m."""
        return exp_avgs

    def _update_on_device(self, group: dict[str, Any], params: Tensors) -> Update:
        weights = [shard_of(p) for p in params]
        # `_step_group` passes only parameters with a gradient; the condition is for the type checker.
        grads = widened([shard_of(p.grad, like=p) for p in params if p.grad is not None])
        directions = self._directions_on_device(group, params, grads)
        norms = [multi_tensor_norms(tensors) for tensors in (weights, grads, directions)]
        dots = [multi_tensor_dots(weights, grads), multi_tensor_dots(weights, directions)]
        # r becomes r + λw in place, so its own norm and inner product were taken above.
        add_decay(directions, weights, [self.decay_of(group, p) for p in params])
        whole = yield TensorFigures([*norms, multi_tensor_norms(directions)], dots)
        weight_norm, grad_norm, adam_norm, norm = whole.norms
        weight_grad_dot, weight_adam_dot = whole.dots
        ratio = weight_norm.clamp(max=NORM_CAP) / norm
        if group["trust_clip"]:
            ratio = ratio.clamp(max=1.0)
        adapted = [i for i, p in enumerate(params) if self.adapts(group, p)]
        ratio = where_adapted(adapted, torch.where((weight_norm > 0) & (norm > 0), ratio, 1.0))
        # The others' ratio is 1: they need no kernel.
        scale_each([directions[i] for i in adapted], [ratio[i] for i in adapted])
        descend(weights, directions, group["lr"])
        phi = torch.full_like(norm, NAN)
        return torch.stack([weight_norm, grad_norm, weight_grad_dot, norm, adam_norm, weight_adam_dot, ratio, phi])

    def _directions_on_device(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors:
        """Update the moments; return r of every tensor, or of its shard."""
        beta1, beta2 = group["betas"]
        states = [[shard_of(self.state_tensor(p, name)) for p in params] for name in ("exp_avg", "exp_avg_sq")]
        m, v = map(widened, states)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grads, alpha=1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        # `widened` copies half-precision moments: the new values go back. In other types the update was in place.
        for kept, new in zip(states, (m, v), strict=True):
            if kept[0] is not new[0]:
                torch._foreach_copy_(kept, new)
        directions: Tensors = torch._foreach_sqrt(v)
        torch._foreach_add_(directions, group["eps"])
        # Not in place: the numerators are the moments themselves.
        return list(torch._foreach_div(self.numerators(group, grads, m), directions))
