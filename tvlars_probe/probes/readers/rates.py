"""The rates that an optimizer really applied, as the effective Hessian needs them.

A rate is what multiplied the gradient before momentum: lr·trust_ratio·(1 − dampening), divided in the Adam family by
√v̂ + eps with that optimizer's own bias correction. A moving average of gradients with β₁ is heavy-ball momentum with
dampening β₁.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.curvature.scaling import Rates
from tvlars_probe.optimizers.description import describe, optimizers_in
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
    optimizers = optimizers_in(optimizer)
    rates: dict[str, Tensor] = {}
    decay: dict[str, float] = {}
    limits: set[float | None] = set()
    for one, names in zip(optimizers, optimizer_names(model, optimizers), strict=True):
        ratios = trust_ratios_of(one) if scaled_lr is None else []
        rows = [
            (description, group, p)
            for description, group in zip(describe(one), one.param_groups, strict=True)
            for p in group["params"]
        ]
        for i, (name, (description, group, p)) in enumerate(zip(names, rows, strict=True)):
            lr = scaled_lr.get(name, math.nan) if scaled_lr is not None else number(group["lr"]) * ratios[i]
            rates[name] = lr * _per_element(description, {**group, **one.state.get(p, {})})
            # Decay that is added to the gradient adds λ to the Hessian's diagonal; other forms stay out of Λ.
            is_coupled = description.is_known and description.decay.form == "coupled"
            decay[name] = description.decay_of(p.ndim) if is_coupled else 0.0
            # A limit holds for the whole model only if all groups have it.
            limits.add(description.stability_limit)
    return Rates(rates=rates, decay=decay, limit=limits.pop() if len(limits) == 1 else None, step=step)


def trust_ratios_of(optimizer: Optimizer) -> list[float]:
    """The trust ratio of each parameter's last update; NaN where it isn't known."""
    ratios: list[float] = []
    left_behind: Any = None
    for description, group in zip(describe(optimizer), optimizer.param_groups, strict=True):
        params, scaling = group["params"], description.scaling
        if description.norms == "last_step":
            # One vector over the parameters of all groups: read once, then cut group by group.
            if left_behind is None and (last := getattr(optimizer, "last_step", None)) is not None:
                left_behind = last.trust_ratio.tolist()
            ratios += left_behind[len(ratios) :][: len(params)] if left_behind else [math.nan] * len(params)
        elif description.is_known and scaling.kind == "none":
            ratios += [1.0] * len(params)
        elif description.is_known and scaling.kind == "shape":
            ratios += [description.shape_factor(tuple(p.shape)) for p in params]
        else:
            ratios += [math.nan] * len(params)
    return ratios


def _per_element(group: GroupDescription, kept: Mapping[str, Any]) -> Tensor:
    """The rate's factor beside lr and trust ratio: (1 − dampening)/(√v̂ + eps); 1 − dampening where nothing divides.

    Args:
        group: description of the parameter group.
        kept: the group's settings, and what the optimizer's state holds of the tensor.

    Returns:
        one number, or one per element; NaN where the factor isn't known.
    """
    undamped, divisor = 1.0 - group.momentum.damping, group.preconditioner
    if not group.has_rates:
        return torch.tensor(math.nan)
    if divisor.kind == "none":
        return torch.tensor(undamped)
    v = kept.get(divisor.second_moment or "")
    if v is None:  # before the first step
        return torch.tensor(math.nan)
    # Centred: v less the squared mean is the gradient's variance.
    if divisor.centered:
        v = v - kept[divisor.first_moment or ""].square()
    steps = number(kept.get("step", 1))
    if divisor.bias_corrected:
        v = v / (1 - number(divisor.beta) ** steps)
    # `sqrt` makes a new tensor: what is done in place from here on leaves the optimizer's state alone.
    root: Tensor = v.sqrt().add_(divisor.eps)
    # Dividing the direction or lr by 1 − βᵗ is the same factor on the rate.
    if group.momentum.bias_corrected or group.momentum.rate_corrected:
        root.mul_(1 - group.momentum.beta**steps)
    root.mul_(1 + (steps - 1) * group.rate_decay)
    return root.reciprocal().mul_(undamped)


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
