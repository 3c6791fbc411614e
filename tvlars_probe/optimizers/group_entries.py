"""Parameter groups in a manifest: how an entry is written, and how it is read, also from an older manifest.

An entry holds the group's settings under their own names, and the whole description. Older entries hold the settings
alone: for these the present rules make the description from class and settings. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvlars_probe.optimizers.foreign_rules import FOREIGN
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.registry import OPTIMIZERS
from tvlars_probe.optimizers.rules import TORCH, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.optimizers.description_words import Momentum

_VARIANT = (
    "denominator", "exclusion", "trust_clip", "adam", "weight_decay_filter", "lars_adaptation_filter",
)  # fmt: skip

_OURS = {entry.class_name: entry for entry in OPTIMIZERS.values()}
_BY_PATH = {**TORCH, **FOREIGN}


def to_entry(description: GroupDescription, group: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entry for a parameter group: its settings, and the description of what they do."""
    decay = description.decay.form
    return {
        "optimizer": description.optimizer,
        "module": description.module,
        "lr": number(group.get("lr")),
        "eta": _figure(group.get("eta")),
        "momentum": _momentum(description.momentum) if description.is_known else None,
        "weight_decay": _figure(group.get("weight_decay")),
        # Entries have always known two forms; only the description tells LAMB's "direction" from decoupled decay.
        "decay_form": None if decay == "none" else "coupled" if decay == "coupled" else "decoupled",
        "eps": _figure(group.get("eps")),
        "variant": {name: group[name] for name in _VARIANT if name in group},
        "phi": dataclasses.asdict(phi) if (phi := description.scaling.phi) is not None else None,
        "parameters": len(group["params"]),
        "description": description.as_dict(),
    }


def _figure(value: Any) -> float | None:
    """A setting as a number, whole ones as they are; None for what is none: another package's ``eta`` may be a word."""
    if value is None or isinstance(value, int | float):
        return value
    try:
        return number(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements raises RuntimeError
        return None


def _momentum(momentum: Momentum) -> dict[str, Any]:
    if momentum.form in ("heavy-ball", "nesterov"):
        return {"form": momentum.form, "beta": momentum.beta, "dampening": momentum.dampening}
    return {"form": momentum.form, "beta": momentum.beta}


def from_entry(entry: Mapping[str, Any]) -> GroupDescription:
    """The description of a group in a manifest: the stored one, or in an older manifest that of class and settings.

    The result is unknown where the entry is damaged or no rule fits it: no manifest's content ends an analysis here.
    """
    name, module = str(entry.get("optimizer") or ""), str(entry.get("module") or "")
    ours = _OURS.get(name)
    try:
        if entry.get("description") is not None:
            return GroupDescription.from_dict(entry["description"])
        # Class names such as LARS and Adam occur in several packages: the module decides, where the entry has one.
        if ours is not None and (not module or ours.path == f"{module}.{name}"):
            found: GroupDescription | None = ours.describe(_settings(entry))
        else:
            rule = _BY_PATH.get(f"{module}.{name}")
            found = None if rule is None else rule(_settings(entry))
    except (KeyError, TypeError, ValueError):  # an entry of another origin lacks a setting, or holds a wrong value
        found = None
    return GroupDescription.unknown(name, module) if found is None else replace(found, optimizer=name, module=module)


def registered_name(entry: Mapping[str, Any]) -> str | None:
    """The name by which `train` knows the optimizer of a manifest's group; None for optimizers that it can't build."""
    module, name = str(entry.get("module") or ""), str(entry.get("optimizer") or "")
    for known, registered in OPTIMIZERS.items():
        if registered.class_name == name and (not module or registered.path == f"{module}.{name}"):
            return known
    return None


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An older entry's settings under the names that the classes give them."""
    momentum = entry.get("momentum") or {}
    form, beta = momentum.get("form"), momentum.get("beta", 0.0)
    told = {name: entry[name] for name in ("eta", "weight_decay", "eps") if entry.get(name) is not None}
    told |= {**(entry.get("variant") or {}), **(entry.get("phi") or {})}
    if form == "moving-average":
        told["betas"] = (beta, None)  # older entries don't hold β₂
    elif form is not None:
        told |= {"momentum": beta, "dampening": momentum.get("dampening", 0.0), "nesterov": form == "nesterov"}
    return told | {"decoupled_weight_decay": entry.get("decay_form") == "decoupled"}
