"""Which parameters the recorded optimizers hold, and what the manifest says of them."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.findings.window import Tensors
from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.group_entries import to_entry
from tvlars_probe.probes.readers.norms import NormReader
from tvlars_probe.probes.readers.parameters import optimizer_names, parameter_table
from tvlars_probe.probes.readers.spectral import SpectralReader
from tvlars_probe.shards import copies_of, refuse_gathered, refuse_part_of_ranks
from tvlars_probe.whole_tensors import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.traces.manifest import Manifest


class Layout:
    """The parameters of a recorder's optimizers, in order, as they were when this object was made.

    Args:
        model: the model whose parameters give the names.
        optimizers: the recorded optimizers.
        updates: whether ‖Δw‖ is read.
        ranks: the ranks of the run.

    Attributes:
        names: the names of all parameters, optimizer by optimizer.
        offsets: where each optimizer's parameters begin in ``names``, and at last where they end.
        readers: a reader of norms per optimizer.
        spectral: a reader of spectral norms per optimizer.
        nulls: per parameter, the columns that are null for it.
        tensors: what the rules of `tvlars_probe.findings` ask of the parameters.
        is_sharded: whether any parameter is a DTensor. Then all ranks read, each its shards.
        is_wide: whether any parameter is one of float64, the squares of whose norms may leave that type's range.
        copies: per parameter, the number of ranks that hold each of its elements: see `tvlars_probe.shards`.
        precisions: per parameter, the name of its type.
        entries: what the manifest says of the parameters, where they are sharded; else None, since it is read anew.

    Raises:
        UserError: DTensors are on a part of the ranks, or the model holds others in place of the optimizers'.
    """

    def __init__(
        self, model: nn.Module | None, optimizers: Sequence[Optimizer], *, updates: bool, ranks: Ranks
    ) -> None:
        names = optimizer_names(model, optimizers)
        self._optimizers = optimizers
        self._members = [*map(_identities, optimizers)]
        self.names = [name for some in names for name in some]
        self.offsets: list[int] = np.cumsum([0, *(len(some) for some in names)]).tolist()
        params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self.is_sharded = any(map(is_dtensor, params))
        self.is_wide = any(p.dtype in (torch.float64, torch.complex128) for p in params)
        refuse_part_of_ranks([*zip(self.names, params, strict=True)], ranks)
        self.precisions = [str(p.dtype).removeprefix("torch.") for p in params]
        self.copies = np.array([copies_of(p, ranks.world_size) for p in params], dtype=np.float64)
        # At once: after a pass without a backward, FSDP2's modules hold whole tensors in place of their parameters.
        self.entries = [info.as_dict() for info in parameter_table(model, optimizers)] if self.is_sharded else None
        if self.is_sharded and model is not None:
            refuse_gathered(model, params)
        self.readers = [NormReader(optimizer, updates=updates, sharded=self.is_sharded) for optimizer in optimizers]
        self.spectral = [
            SpectralReader(optimizer, some, updates=updates) for optimizer, some in zip(optimizers, names, strict=True)
        ]
        self.nulls = [columns for reader in self.readers for columns in reader.nulls]
        self.tensors = Tensors.of(
            self.names,
            [description for reader in self.readers for description in reader.descriptions],
            [p.ndim for p in params],
            [torch.finfo(p.dtype).eps / 2 for p in params],
        )

    @property
    def fingerprint(self) -> int:
        """A number below 2⁶² that tells apart parameters of other names or shapes, or sharded otherwise."""
        shapes = [tuple(p.shape) for one in self._optimizers for group in one.param_groups for p in group["params"]]
        facts = [*zip(self.names, shapes, self.copies.tolist(), strict=True)], self.is_sharded
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
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


def note_parameters(
    manifest: Manifest, phase: str, model: nn.Module | None, optimizers: Sequence[Optimizer], layout: Layout
) -> None:
    """Put a phase's parameters and parameter groups into the manifest, in place of what it holds of that phase."""
    entries = layout.entries
    manifest.parameters[phase] = entries or [info.as_dict() for info in parameter_table(model, optimizers)]
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
        f"tvlars_probe.describe.register({names[0]}) tells it (docs/reference/optimizers.md)"
    )
