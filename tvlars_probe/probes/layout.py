"""Which parameters the recorded optimizers hold, and the rates they last applied to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tvlars_probe.probes.known_optimizers import describe_group, number, trust_ratios
from tvlars_probe.probes.norms import NormProbe
from tvlars_probe.probes.parameters import optimizer_names, parameter_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.traces.manifest import Manifest


class Layout:
    """The parameters of a recorder's optimizers, in order, as they were when this object was made.

    Attributes:
        names: of all parameters, optimizer by optimizer.
        offsets: where each optimizer's parameters begin among them.
        probes: an optimizer's norms.
        nulls: per parameter, the columns that are null for it.
    """

    def __init__(self, model: nn.Module | None, optimizers: Sequence[Optimizer], *, updates: bool) -> None:
        names = optimizer_names(model, optimizers)
        self._optimizers = optimizers
        self._members = _identities(optimizers)
        self.names = [name for some in names for name in some]
        self.offsets: list[int] = np.cumsum([0, *(len(some) for some in names)]).tolist()
        self.probes = [NormProbe(optimizer, updates=updates) for optimizer in optimizers]
        self.nulls = [probe.nulls for probe, some in zip(self.probes, names, strict=True) for _ in some]

    @property
    def is_current(self) -> bool:
        """Whether the optimizers still hold these parameters."""
        return self._members == _identities(self._optimizers)


def _identities(optimizers: Sequence[Optimizer]) -> list[tuple[int, ...]]:
    return [tuple(map(id, group["params"])) for o in optimizers for group in o.param_groups]


def note_parameters(manifest: Manifest, phase: str, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
    """Put a phase's parameters and parameter groups into the manifest."""
    manifest.parameters[phase] = [info.as_dict() for info in parameter_table(model, optimizers)]
    others = [group for group in manifest.groups if group.get("phase", phase) != phase]
    mine = [describe_group(o, group) for o in optimizers for group in o.param_groups]
    manifest.groups = others + [{**group, "phase": phase} for group in mine]


class LastRates:
    """lr × trust_ratio of every parameter's last update, by name."""

    def __init__(self, known: Mapping[str, float]) -> None:
        self._rates = dict(known)
        self.lrs: dict[int, list[Any]] = {}

    def note(self, index: int, optimizer: Optimizer) -> None:
        """Keep the groups' learning rates of the update that optimizer ``index`` is making."""
        lrs = [group.get("lr", math.nan) for group in optimizer.param_groups]
        self.lrs[index] = [lr.detach().clone() if isinstance(lr, Tensor) else lr for lr in lrs]

    def read(self, layout: Layout, optimizers: Sequence[Optimizer]) -> dict[str, float]:
        """The rates; NaN where the trust ratio isn't known."""
        for index, lrs in self.lrs.items():
            groups = optimizers[index].param_groups
            spread = [number(lr) for lr, group in zip(lrs, groups, strict=False) for _ in group["params"]]
            names, ratios = layout.names[layout.offsets[index] :], trust_ratios(optimizers[index])
            self._rates |= {name: lr * q for name, lr, q in zip(names, spread, ratios, strict=False)}
        self.lrs.clear()
        return dict(self._rates)
