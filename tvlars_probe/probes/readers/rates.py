"""The rates that an optimizer really applied, as the effective Hessian needs them.

A rate is what multiplied the gradient before momentum: lr·trust_ratio·(1 − dampening), divided in the Adam family by
√v̂ + eps with that optimizer's own bias correction. A moving average of gradients with β₁ is heavy-ball momentum with
dampening β₁.

Weight decay takes one of two ways. What enters the momentum together with the gradient adds to the Hessian's diagonal.
What is subtracted beside the momentum, as δ·w (AdamW's lr·λ, LAMB's lr·trust_ratio·λ), lowers the limit of stability L
to L(1 − δ/2). That asks for one δ for all tensors. Where the tensors differ in it, L·δ/(2·rate) on the Hessian's
diagonal does the same, exactly: the limit is reached where L − L·δ/2 − rate·curvature, a matrix over all tensors,
becomes singular, and both of its last terms can stand on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.curvature.scaling import Rates
from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.given import optimizers_in
from tvlars_probe.optimizers.rules import number
from tvlars_probe.probes.readers.parameters import optimizer_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.optimizers.group_description import GroupDescription
    from tvlars_probe.probes.readers.layout import Layout


def applied_rates(
    model: nn.Module | None,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    scaled_lr: Mapping[str, float] | None = None,
    step: int | None = None,
) -> Rates:
    """The rates of an optimizer's last step.

    Args:
        model: the model whose parameters name the rates.
        optimizer: one optimizer or several.
        scaled_lr: lr × trust_ratio of each parameter in that step, as a recorder or a checkpoint knows it. By default
            it is taken from the optimizer as it is now, which is wrong if a schedule has changed lr since that step.
        step: index of that step.

    Returns:
        rates by name, a number or a tensor of the parameter's shape; NaN for optimizers whose description doesn't give
        them: see `tvlars_probe.describe`.
    """
    optimizers = optimizers_in(optimizer, model)
    applied: dict[str, _Applied] = {}
    # A limit holds for the whole model only if all groups have it.
    limits: set[float | None] = set()
    for one, names in zip(optimizers, optimizer_names(model, optimizers), strict=True):
        rows = [
            (description, group, p)
            for description, group in zip(describe.groups(one), one.param_groups, strict=True)
            for p in group["params"]
        ]
        for name, ratio, (description, group, p) in zip(names, trust_ratios_of(one), rows, strict=True):
            if scaled_lr is None:
                lr, scaled = number(group["lr"]), number(group["lr"]) * ratio
            else:
                scaled = scaled_lr.get(name, math.nan)
                lr = scaled / ratio if ratio else math.nan
            applied[name] = _Applied.of(description, {**group, **one.state.get(p, {})}, p.ndim, lr=lr, scaled=scaled)
            limits.add(description.stability_limit)
    limit, further = _limit_of(applied, limits.pop() if len(limits) == 1 else None)
    return Rates(
        rates={name: one.rate for name, one in applied.items()},
        decay={name: one.decay for name, one in applied.items()} | further,
        limit=limit,
        step=step,
    )


@dataclass(frozen=True)
class _Applied:
    """What a step did to one tensor.

    Attributes:
        rate: its rate, one number or one per element; NaN where it isn't known.
        decay: what its weight decay adds to the Hessian's diagonal.
        shrinkage: δ, the share of the weights that the step subtracted beside the momentum; NaN where it isn't known.
    """

    rate: Tensor
    decay: float | Tensor
    shrinkage: float

    @classmethod
    def of(cls, group: GroupDescription, kept: Mapping[str, Any], ndim: int, *, lr: float, scaled: float) -> _Applied:
        """Compute it for a tensor.

        Args:
            group: description of its parameter group.
            kept: the group's settings, and what the optimizer's state holds of the tensor.
            ndim: number of its dimensions.
            lr: the learning rate of the step.
            scaled: the same times the trust ratio.
        """
        steps = number(kept.get("step", 1))
        if not group.has_rates or steps < 1:  # a fused step that was skipped leaves a count of 0
            return cls(torch.tensor(math.nan), 0.0, math.nan)
        momentum, form, decay = group.momentum, group.decay.form, group.decay_of(ndim)
        divisor = _divisor(group, kept)
        # These two divide the whole rate; a bias-corrected momentum divides the gradient's part alone.
        scaled /= 1 + (steps - 1) * group.rate_decay
        scaled /= 1 - momentum.beta**steps if momentum.rate_corrected else 1.0
        undamped = (1 - momentum.damping) / (1 - momentum.beta**steps if momentum.bias_corrected else 1.0)
        rate = scaled * undamped / divisor
        enters_momentum = momentum.form != "none" and momentum.over == "direction"
        if form == "direction":
            return cls(rate, decay * divisor, 0.0) if enters_momentum else cls(rate, 0.0, scaled * decay)
        return cls(rate, decay if form == "coupled" else 0.0, lr * decay if form == "decoupled" else 0.0)


def _limit_of(
    applied: Mapping[str, _Applied], undecayed: float | None
) -> tuple[float | None, dict[str, float | Tensor]]:
    """The limit of stability with decay that is subtracted beside the momentum.

    Args:
        applied: what the step did to each tensor.
        undecayed: the limit without such decay.

    Returns:
        the limit, and the decay of tensors to whose diagonal of the Hessian it is added instead.
    """
    # A tensor that hasn't made a step has no part in it: the operator can't be made of it either.
    made = {name: one for name, one in applied.items() if one.rate.isfinite().all()}
    shares = {one.shrinkage for one in made.values()}
    if undecayed is None or any(map(math.isnan, shares)):
        return None, {}
    if len(shares) <= 1:
        return undecayed * (1 - sum(shares) / 2), {}
    # At a rate of zero nothing can stand in for δ on the Hessian's diagonal: its row of the operator stays zero.
    return undecayed, {
        name: one.decay + torch.where(one.rate > 0, undecayed / 2 * one.shrinkage / one.rate, 0.0)
        for name, one in made.items()
        if one.shrinkage
    }


def trust_ratios_of(optimizer: Optimizer) -> list[float]:
    """The trust ratio of each parameter's last update; NaN where it isn't known."""
    ratios: list[float] = []
    left_behind: Any = None
    for description, group in zip(describe.groups(optimizer), optimizer.param_groups, strict=True):
        params, scaling = group["params"], description.scaling
        if description.norms == "last_step":
            # One vector over the parameters of all groups: read once, then cut group by group.
            if left_behind is None and (last := getattr(optimizer, "last_step", None)) is not None:
                left_behind = last.trust_ratio.tolist()
            known = left_behind[len(ratios) :][: len(params)] if left_behind else []
            # A group that was added since has made no update.
            ratios += [*known, *[math.nan] * (len(params) - len(known))]
        elif description.is_known and scaling.kind == "none":
            ratios += [1.0] * len(params)
        elif description.is_known and scaling.kind == "shape":
            ratios += [description.shape_factor(tuple(p.shape)) for p in params]
        else:
            ratios += [math.nan] * len(params)
    return ratios


def _divisor(group: GroupDescription, kept: Mapping[str, Any]) -> Tensor:
    """What a tensor's direction was divided by: √v̂ + eps; 1 where nothing divides it.

    Args:
        group: description of the parameter group.
        kept: the group's settings, and what the optimizer's state holds of the tensor.

    Returns:
        one number in float64, or one per element; NaN where it isn't known.
    """
    divisor = group.preconditioner
    if divisor.kind == "none":
        return torch.ones((), dtype=torch.float64)
    v = kept.get(divisor.second_moment or "")
    if v is None:  # before the first step
        return torch.full((), math.nan, dtype=torch.float64)
    v = v.to(torch.promote_types(v.dtype, torch.float32))  # half precision has three digits, and rounds eps to zero
    # Centred: v less the squared mean is the gradient's variance.
    if divisor.centered:
        v = v - kept[divisor.first_moment or ""].square()
    if divisor.bias_corrected:
        v = v / (1 - number(divisor.beta) ** number(kept.get("step", 1)))
    # `sqrt` makes a new tensor: what is done in place leaves the optimizer's state alone.
    root: Tensor = v.sqrt().add_(divisor.eps)
    return root


class LastRates:
    """lr × trust_ratio of every parameter's last update, by name.

    Each update only has its learning rates noted, which a schedule may change after it. The trust ratios, for which the
    host would wait in each step, are read when they are asked for: an optimizer keeps them until its next update.

    Args:
        known: rates of updates before the first one noted here.

    Attributes:
        lrs: the groups' learning rates in the last update, by the optimizer's index; empty after `read`.
    """

    def __init__(self, known: Mapping[str, float]) -> None:
        self._rates = dict(known)
        self.lrs: dict[int, list[Any]] = {}

    def note(self, index: int, optimizer: Optimizer) -> None:
        """Keep the groups' learning rates of the update that optimizer ``index`` is making."""
        lrs = [group.get("lr", math.nan) for group in optimizer.param_groups]
        # torch's schedules write into an lr that is a tensor.
        self.lrs[index] = [lr.detach().clone() if isinstance(lr, Tensor) else lr for lr in lrs]

    def read(self, layout: Layout, optimizers: Sequence[Optimizer]) -> dict[str, float]:
        """The rates; NaN where the trust ratio isn't known."""
        for index, lrs in self.lrs.items():
            groups = optimizers[index].param_groups
            spread = [number(lr) for lr, group in zip(lrs, groups, strict=False) for _ in group["params"]]
            # Not strict: the names go on with the next optimizer's, and groups may have been added since the update.
            names, ratios = layout.names[layout.offsets[index] :], trust_ratios_of(optimizers[index])
            self._rates |= {name: lr * q for name, lr, q in zip(names, spread, ratios, strict=False)}
        self.lrs.clear()
        return dict(self._rates)
