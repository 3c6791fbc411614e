"""Updates of DTensors, which halt until their shards' norms have become those of whole tensors, in one sum for all."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.reductions import Tensors, accumulation_dtype
from tvlars_probe.shards import TensorFigures, copies_of, holders_of, whole_figures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.collectives import Ranks

Update = Generator[TensorFigures, TensorFigures, Tensor]
"""Yields the figures of what it holds of its tensors, is sent those of whole tensors, updates, and returns a table."""


def finished(update: Update, whole: TensorFigures | None = None) -> Tensor:
    """The table that an update returns.

    Args:
        update: the update; of tensors that are whole here it hasn't begun yet.
        whole: the figures of whole tensors, for one that has halted. By default what it yields is whole.
    """
    try:
        update.send(next(update) if whole is None else whole)
    except StopIteration as stop:
        table: Tensor = stop.value
        return table
    raise AssertionError("an update yields once")


class Joining:
    """Joins the updates of all DTensors in a step, of all groups, for one sum over the ranks that hold them."""

    def __init__(self) -> None:
        self._ranks: Ranks | None = None
        self._waiting: list[tuple[list[int], Tensors, Update]] = []
        self._copies: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    def begin(self, params: Tensors) -> None:
        """Begin a step.

        Args:
            params: the parameters that it updates.

        Raises:
            UserError: their meshes have no ranks in common: see `holders_of`.
        """
        self._waiting.clear()  # of a step that raised
        self._ranks = holders_of(params, params[0].device) if params else None

    def add(self, indices: list[int], params: Tensors, update: Update) -> None:
        """Take an update of DTensors.

        Args:
            indices: their places among all parameters.
            params: the DTensors.
            update: the update, not begun yet.
        """
        self._waiting.append((indices, params, update))

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """Make the updates; yield each parameter's place and its column of the update's table."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        assert self._ranks is not None
        # All of them up to their figures, so that all figures cross in one sum.
        of_shards = [next(update) for _, _, update in waiting]
        copies = [self._copies_of(params, self._ranks) for _, params, _ in waiting]
        wide = any(p.dtype == torch.float64 for _, params, _ in waiting for p in params)
        whole = whole_figures(of_shards, copies, self._ranks, wide=wide)
        for (indices, _, update), figures in zip(waiting, whole, strict=True):
            yield from zip(indices, finished(update, figures).unbind(1), strict=True)

    def _copies_of(self, params: Tensors, ranks: Ranks) -> Tensor:
        """`copies_of` the tensors on their device: kept, since the host waits for a transfer."""
        key = (params[0].device, tuple(copies_of(p, ranks.world_size) for p in params))
        if key not in self._copies:
            device, counts = key
            self._copies[key] = torch.tensor(counts, dtype=accumulation_dtype(device), device=device)
        return self._copies[key]
