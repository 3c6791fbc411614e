"""Which parameters the recorded optimizers hold, and what the manifest says of them."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.group_entries import to_entry
from tvlars_probe.probes.readers.norms import NormReader
from tvlars_probe.probes.readers.parameters import optimizer_names, parameter_table
from tvlars_probe.probes.readers.spectral import SpectralReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.traces.manifest import Manifest


class Layout:
    """The parameters of a recorder's optimizers, in order, as they were when this object was made.

    Args:
        model: the model whose parameters give the names.
        optimizers: the recorded optimizers.
        updates: whether ‖Δw‖ is read.

    Attributes:
        names: the names of all parameters, optimizer by optimizer.
        offsets: where each optimizer's parameters begin in ``names``, and at last where they end.
        readers: a reader of norms per optimizer.
        spectral: a reader of spectral norms per optimizer.
        nulls: per parameter, the columns that are null for it.
    """

    def __init__(self, model: nn.Module | None, optimizers: Sequence[Optimizer], *, updates: bool) -> None:
        names = optimizer_names(model, optimizers)
        self._optimizers = optimizers
        self._members = [*map(_identities, optimizers)]
        self.names = [name for some in names for name in some]
        self.offsets: list[int] = np.cumsum([0, *(len(some) for some in names)]).tolist()
        self.readers = [NormReader(optimizer, updates=updates) for optimizer in optimizers]
        self.spectral = [
            SpectralReader(optimizer, some, updates=updates) for optimizer, some in zip(optimizers, names, strict=True)
        ]
        self.nulls = [columns for reader in self.readers for columns in reader.nulls]

    @property
    def fingerprint(self) -> int:
        """A number below 2⁶² that tells apart parameters of other names or shapes."""
        shapes = [tuple(p.shape) for one in self._optimizers for group in one.param_groups for p in group["params"]]
        digest = hashlib.blake2b(repr([*zip(self.names, shapes, strict=True)]).encode(), digest_size=8).digest()
        return int.from_bytes(digest) >> 2

    @property
    def is_current(self) -> bool:
        """Whether the optimizers still hold these parameters."""
        return all(map(self.holds, range(len(self._optimizers))))

    def holds(self, index: int) -> bool:
        """Whether optimizer ``index`` still holds these parameters."""
        return self._members[index] == _identities(self._optimizers[index])


def _identities(optimizer: Optimizer) -> list[tuple[int, ...]]:
    """The parameters of each group by identity: a tensor put in another's place is another parameter."""
    return [tuple(map(id, group["params"])) for group in optimizer.param_groups]


def note_parameters(manifest: Manifest, phase: str, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
    """Put a phase's parameters and parameter groups into the manifest, in place of what it holds of that phase."""
    manifest.parameters[phase] = [info.as_dict() for info in parameter_table(model, optimizers)]
    # A group that names no phase counts as this phase's, and is replaced.
    others = [group for group in manifest.groups if group.get("phase", phase) != phase]
    mine = [
        {**to_entry(description, group), "optimizer_index": i, "group": j, "phase": phase}
        for i, optimizer in enumerate(optimizers)
        for j, (description, group) in enumerate(zip(describe.groups(optimizer), optimizer.param_groups, strict=True))
    ]
    manifest.groups = others + mine


def note_unknown(manifest: Manifest, optimizers: Sequence[Optimizer], *, warns: bool) -> None:
    """Note in one line which optimizers have no description, and warn of them where ``warns``."""
    text = _unknown_optimizers(optimizers)
    if text is None or text in manifest.notes:
        return
    if warns:
        warnings.warn(text, stacklevel=4)
    manifest.notes.append(text)


def _unknown_optimizers(optimizers: Sequence[Optimizer]) -> str | None:
    unknown = [d for one in optimizers for d in describe.groups(one) if not d.is_known]
    if not unknown:
        return None
    names = [*dict.fromkeys(d.optimizer for d in unknown)]
    null = "the applied rates are" if all(d.columns for d in unknown) else "trust_ratio and the applied rates are"
    return (
        f"what {', '.join(names)} does to a rate isn't known, so that {null} null; norms are recorded. "
        f"tvlars_probe.describe.register({names[0]}) tells it (docs/optimizers.md)"
    )
