"""The tensors furthest from their own median in each quantity, made of the rows of ``layers`` as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.live.own_medians import LENGTH, OwnMedians, as_matrices
from tvlars_probe.live.state import QUANTITIES, Furthest

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("parameter", "trust_ratio", "grad_norm", "update_norm", "weight_norm")
"""What is read of the table ``layers``."""

MOST_TENSORS = 1 << 17
"""Tensors beyond which nothing is taken in: memory would have to hold some figures of each."""


class LayerMedians:
    """The quantities `QUANTITIES` of every tensor in the last recorded steps of one phase."""

    def __init__(self) -> None:
        self._medians = {name: OwnMedians() for name in QUANTITIES}
        self._steps: dict[str, int | None] = dict.fromkeys(QUANTITIES)
        self._began = 0

    def add(self, rows: pa.Table, began: int) -> None:
        """Take in rows of later steps, in any order.

        Args:
            rows: of the table ``layers``.
            began: the first step of the phase; earlier phases have other parameters, and are forgotten.
        """
        if began != self._began:
            self._began = began
            self._forget()
        names: Any = rows["parameter"].chunk(0)
        if len(names.dictionary) > MOST_TENSORS:
            return
        in_rows, tensors, figures = as_matrices(rows, list(COLUMNS[1:]), since=began, last=LENGTH)
        if not len(in_rows):
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            figures["relative_update"] = figures["update_norm"] / figures["weight_norm"]
        for name in QUANTITIES:
            # Of a large model ‖Δw‖ is there in one recorded step of ten: the others tell nothing of it.
            there: Any = np.flatnonzero(~np.isnan(figures[name]).all(axis=1))
            if len(there):
                self._medians[name].add(tensors, figures[name][there])
                self._steps[name] = int(in_rows[there[-1]])

    def cut(self, step: int) -> None:
        """Begin anew where ``step`` or a later one was taken in: a median over both histories would be none."""
        if any(last is not None and last >= step for last in self._steps.values()):
            self._forget()

    def furthest(self, count: int) -> dict[str, Furthest]:
        """By quantity, the ``count`` tensors furthest from their own median."""
        return {
            name: Furthest(step=self._steps[name], tensors=tuple(self._medians[name].furthest(count)))
            for name in QUANTITIES
        }

    def _forget(self) -> None:
        self._steps = dict.fromkeys(QUANTITIES)
        for medians in self._medians.values():
            medians.forget()
