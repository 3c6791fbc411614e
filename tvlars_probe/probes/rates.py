"""The rates an optimizer really applied, as the effective Hessian needs them.

For each optimizer what multiplied the gradient before momentum: lr·trust_ratio·(1 − dampening), divided in the Adam
family by √v̂ + eps with that optimizer's own bias correction. A moving average of gradients with β₁ is heavy-ball
momentum with dampening β₁.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tvlars_probe.curvature.scaling import Rates, stability_limit
from tvlars_probe.probes.known_optimizers import decay_form, has_last_step, momentum_form, number, trust_ratios
from tvlars_probe.probes.parameters import optimizer_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


def applied_rates(
    model: nn.Module | None,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    scaled_lr: Mapping[str, float] | None = None,
    step: int | None = None,
) -> Rates:
    """The rates of an optimizer's last step.

    Args:
        model: whose parameters give the rates their names.
        optimizer: one or several.
        scaled_lr: lr × trust_ratio of each parameter in that step, as a recorder or a checkpoint knows it; by default
            from the optimizer as it is now, which is wrong if a schedule has changed its lr since.
        step: index of that step.

    Returns:
        rates by name; NaN for optimizers that aren't known: LARS, TVLARS, LAMB, and torch's SGD, Adam, AdamW, Adagrad
        and RMSprop are.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    rates: dict[str, Tensor] = {}
    decay: dict[str, float] = {}
    limits: set[float] = set()
    for one, names in zip(optimizers, optimizer_names(model, optimizers), strict=True):
        rows = [(group, p) for group in one.param_groups for p in group["params"]]
        ratios = trust_ratios(one) if scaled_lr is None else []
        for i, (name, (group, p)) in enumerate(zip(names, rows, strict=True)):
            lr = scaled_lr.get(name, math.nan) if scaled_lr is not None else number(group["lr"]) * ratios[i]
            rates[name] = lr * _per_element(one, group, p)
            decay[name] = _coupled_decay(one, group, p)
            limits.add(_limit(one, group))
    known = len(limits) == 1 and not math.isnan(next(iter(limits)))
    return Rates(rates=rates, decay=decay, limit=next(iter(limits)) if known else None, step=step)


def _per_element(optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> Tensor:
    """What the rate is multiplied by beside lr and trust ratio: one number, or one per element."""
    form, state = momentum_form(optimizer, group), optimizer.state.get(p, {})
    name = "LAMB" if has_last_step(optimizer) and "betas" in group else type(optimizer).__name__
    if form is None or (name in _DIVISORS and not state):
        return torch.tensor(math.nan)
    dampening = form["beta"] if form["form"] == "moving-average" else form.get("dampening", 0.0)
    if name in ("SGD", "LARS", "TVLARS"):
        return torch.tensor(1.0 - dampening)
    if name not in _DIVISORS:
        return torch.tensor(math.nan)
    divisor = _DIVISORS[name](group, state)
    return divisor.reciprocal().mul_(1.0 - dampening)


def _lamb(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    return _root(state["exp_avg_sq"], group["eps"])


def _adam(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    beta1, beta2 = (number(beta) for beta in group["betas"])
    count = number(state["step"])
    v: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    return _root(v / (1 - beta2**count), group["eps"]).mul_(1 - beta1**count)


def _adagrad(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    slowed = 1 + (number(state["step"]) - 1) * number(group["lr_decay"])
    return _root(state["sum"], group["eps"]).mul_(slowed)


def _rmsprop(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    v: Tensor = state["square_avg"]
    return _root(v - state["grad_avg"].square() if group["centered"] else v, group["eps"])


def _root(v: Tensor, eps: float) -> Tensor:
    root: Tensor = v.sqrt()
    return root.add_(eps)


_DIVISORS = {"LAMB": _lamb, "Adam": _adam, "AdamW": _adam, "Adagrad": _adagrad, "RMSprop": _rmsprop}


def _coupled_decay(optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> float:
    """Weight decay that is added to this tensor's gradient."""
    if decay_form(optimizer, group) != "coupled":
        return 0.0
    decay_of: Any = getattr(optimizer, "decay_of", None)
    return number(decay_of(group, p) if decay_of is not None else group["weight_decay"])


def _limit(optimizer: Optimizer, group: dict[str, Any]) -> float:
    form = momentum_form(optimizer, group)
    return math.nan if form is None else stability_limit(number(form["beta"]), form["form"] == "nesterov")
