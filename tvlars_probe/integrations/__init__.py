"""Adaptors of `tvlars_probe.record` to other packages' trainers, each imported only with its package.

`TrainerProbe` is a callback of transformers' Trainer, `LightningProbe` one of Lightning's. accelerate and Fabric
leave the loop to its owner: there `tvlars_probe.record` is called as in a plain loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvlars_probe.extras import missing_extra

if TYPE_CHECKING:
    from tvlars_probe.integrations.lightning import LightningProbe
    from tvlars_probe.integrations.transformers import TrainerProbe

_HOMES = {"LightningProbe": "lightning", "TrainerProbe": "transformers"}

__all__ = ["LightningProbe", "TrainerProbe"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = _HOMES[name]
    try:
        return getattr(import_module(f"{__name__}.{package}"), name)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(name, error)) is not None:
            raise missing from None
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{name} needs the package {package}: pip install 'tvlars-probe[{package}]'", name=package
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
