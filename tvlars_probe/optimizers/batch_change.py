"""An optimizer's settings where a run goes on from a checkpoint with another batch size."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.optim import Optimizer

    from tvlars_probe.optimizers.registry import OptimizerConfig

LR_RULES = ("sqrt", "linear", "none")
"""How the learning rate follows the batch size: by √(B'/B), by B'/B, or not at all."""

_CHANGED = ("lr", "initial_lr", "lmbda", "delay")
"""Entries of a parameter group that `for_batch` changes."""


def rate_factor(rule: str, ratio: float) -> float:
    """What the learning rate is multiplied by where the batch becomes ``ratio`` times as large.

    Raises:
        UserError: there is no such rule.
    """
    if rule not in LR_RULES:
        raise unknown("--lr-rule", rule, LR_RULES)
    return {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]


def for_batch(config: OptimizerConfig, *, ratio: float, rule: str, updates: int) -> OptimizerConfig:
    """The settings for a batch that is ``ratio`` times as large, from update ``updates`` on.

    All learning rates are multiplied by `rate_factor`. What an optimizer itself counts in updates is read by samples:
    TVLARS' φ depends on λ·(t − d_e), where t goes on by 1 a step as before. With λ·ratio in place of λ, and
    d_e' = t₀ + (d_e − t₀)/ratio after t₀ updates, it is at equal numbers of samples what it would have been with the
    former batch. Momentum, the averages of the Adam family and weight decay keep their settings, which are per update:
    a larger batch averages over more samples.
    """
    factor = rate_factor(rule, ratio)
    rates: dict[str, Any] = {"lr": config.peak * factor}
    if config.excluded_lr is not None:
        rates["excluded_lr"] = config.excluded_lr * factor
    if config.rest is not None:
        rates["muon_rest_lr"] = config.rest.peak * factor
    # (d − t) + t may round: with the batch as it was everything stays bit for bit what it was.
    if ratio != 1:
        rates |= {"lmbda": config.lmbda * ratio, "delay": updates + (config.delay - updates) / ratio}
    return dataclasses.replace(config, **rates)


def state_with_settings_of(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state of an optimizer, with the settings of ``optimizer`` in place of those that `for_batch` changes.

    Args:
        optimizer: a new one, whose groups are those of the saved state.
        state: what ``Optimizer.state_dict()`` gave.
    """
    groups: Sequence[Mapping[str, Any]] = state["param_groups"]
    changed = [
        {**saved, **{name: mine[name] for name in _CHANGED if name in mine and name in saved}}
        for mine, saved in zip(optimizer.param_groups, groups, strict=True)
    ]
    return {**state, "param_groups": changed}
