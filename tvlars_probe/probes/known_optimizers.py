"""What is known of optimizers, ours and others, by which a trace says what they really did.

Ours say it themselves (``last_step``, ``adapts``, ``decay_of``). torch's are known by their class; timm's and apex's
by name, without importing them. Of any other nothing is assumed: what it did to a rate is null in the trace.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import optim

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

_WITHOUT_TRUST_RATIO = {
    "timm.optim": {
        "AdaBelief", "Adan", "AdamWLegacy", "Lion", "MADGRAD", "NAdamLegacy", "NAdamW", "RAdamLegacy", "RMSpropTF",
        "SGDW",
    },
    "apex.optimizers": {"FusedAdagrad", "FusedAdam", "FusedSGD"},
}  # fmt: skip

_DECOUPLED = ("AdamW", "Lion", "NAdamW", "SGDW", "AdamWLegacy", "Muon")

UpdateSource = Literal["momentum_buffer", "direction", "snapshot"]


def has_last_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer leaves behind what it computed, as ours do: not any attribute of that name."""
    return hasattr(optimizer, "last_step") and all(hasattr(optimizer, name) for name in ("adapts", "decay_of"))


def has_no_trust_ratio(optimizer: Optimizer) -> bool:
    """Whether the optimizer is known to scale no tensor's rate by a trust ratio."""
    module, name = type(optimizer).__module__, type(optimizer).__name__
    if module == "torch.optim" or module.startswith("torch.optim."):
        return name not in ("Adafactor", "Muon")  # they scale by each tensor's root mean square, or its shape
    return any(module.startswith(home) and name in names for home, names in _WITHOUT_TRUST_RATIO.items())


def is_adapted(optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> bool | None:
    """Whether this tensor's rate is scaled by a trust ratio, None where we don't know."""
    adapts = getattr(optimizer, "adapts", None)
    if has_last_step(optimizer) and adapts is not None:
        return bool(adapts(group, p))
    return False if has_no_trust_ratio(optimizer) else None


def is_decayed(optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> bool | None:
    """Whether this tensor gets weight decay, None where we don't know."""
    decay_of = getattr(optimizer, "decay_of", None)
    if has_last_step(optimizer) and decay_of is not None:
        return bool(decay_of(group, p) != 0)
    return bool(group["weight_decay"] != 0) if "weight_decay" in group else None


def trust_ratios(optimizer: Optimizer) -> list[float]:
    """The trust ratio of each parameter's last update: 1 where there is none, NaN where we don't know it."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if has_last_step(optimizer):
        last: Any = getattr(optimizer, "last_step", None)
        ratios: list[float] = [math.nan] * len(params) if last is None else last.trust_ratio.tolist()
        return ratios
    return [1.0 if has_no_trust_ratio(optimizer) else math.nan] * len(params)


def update_source(optimizer: Optimizer, group: dict[str, Any]) -> UpdateSource:
    """Where ‖Δw‖ can be read after a step without a copy of the weights from before it.

    momentum_buffer: lr·‖buffer‖ (LARS, TVLARS, torch's SGD with plain momentum). direction: lr·q·‖d‖ (LAMB).
    snapshot: only from the weights before and after.
    """
    if any(p.dtype in (torch.bfloat16, torch.float16) or p.is_complex() for p in group["params"]):
        return "snapshot"  # the weights' own rounding is part of the update
    if has_last_step(optimizer):
        if group.get("momentum"):
            return "momentum_buffer"
        return "direction" if group.get("denominator", "decayed") == "decayed" else "snapshot"
    plain = type(optimizer) is optim.SGD and group["momentum"] != 0 and not group["nesterov"]
    return "momentum_buffer" if plain else "snapshot"


def describe_group(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a parameter group."""
    variant = {name: group[name] for name in ("denominator", "exclusion", "trust_clip", "adam") if name in group}
    filters = {name: group[name] for name in ("weight_decay_filter", "lars_adaptation_filter") if name in group}
    factor = {name: group[name] for name in ("lmbda", "alpha", "delay", "gamma_min") if name in group}
    return {
        "optimizer": type(optimizer).__name__,
        "module": type(optimizer).__module__,
        "lr": number(group.get("lr")),
        "eta": group.get("eta"),
        "momentum": momentum_form(optimizer, group),
        "weight_decay": group.get("weight_decay"),
        "decay_form": decay_form(optimizer, group),
        "eps": group.get("eps"),
        "variant": variant | filters,
        "phi": factor or None,
        "parameters": len(group["params"]),
    }


def momentum_form(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any] | None:
    """How past gradients enter the update: heavy ball, Nesterov, a moving average, or not; None where unknown."""
    name = type(optimizer).__name__
    if not (has_last_step(optimizer) or has_no_trust_ratio(optimizer)):
        return None
    if "betas" in group:
        return {"form": "moving-average", "beta": number(group["betas"][0])}
    beta = group.get("momentum", 0.0)
    if not beta:
        return {"form": "none", "beta": 0.0} if name in ("SGD", "RMSprop", "Adagrad", "LARS", "TVLARS") else None
    form = "nesterov" if group.get("nesterov") else "heavy-ball"
    return {"form": form, "beta": beta, "dampening": group.get("dampening", 0.0)}


def decay_form(optimizer: Optimizer, group: dict[str, Any]) -> str | None:
    """coupled (added to the gradient), decoupled (applied to the weights), or None without decay or knowledge."""
    if not group.get("weight_decay"):
        return None
    if has_last_step(optimizer):
        return "decoupled" if "betas" in group else "coupled"
    if has_no_trust_ratio(optimizer):
        decoupled = type(optimizer).__name__ in _DECOUPLED or group.get("decoupled_weight_decay")
        return "decoupled" if decoupled else "coupled"
    return None


def scalar(name: str, value: Any) -> float:
    """A figure that a loop told, as a float, also if it is a tensor or an array of one element.

    Raises:
        UserError: it is no number.
    """
    try:
        return number(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name}={value!r:.60} is no number: give one number, or a tensor of one element") from None


def count(name: str, value: Any) -> int | None:
    """A count that a loop told, None where it told none.

    Raises:
        UserError: it is no whole number from 0 on.
    """
    if value is None:
        return None
    told = scalar(name, value)
    if not 0 <= told < 1 << 63 or told != int(told):
        raise UserError(f"{name}={told:g} is no count: give a whole number from 0 to 2**63 - 1")
    return int(value)


def number(value: Any) -> float:
    """A hyperparameter as a float, also where it is kept as a tensor; NaN where there is none."""
    if value is None:
        return math.nan
    return float(value.item() if isinstance(value, torch.Tensor) else value)
