"""The tensors furthest from their own median in each quantity, made of the rows of ``layers`` as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.live.own_medians import LENGTH, OwnMedians, as_matrices
from tvlars_probe.live.state import QUANTITIES, Furthest
from tvlars_probe.traces.arrays import numbers
from tvlars_probe.traces.datasets import distinct

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("parameter", "trust_ratio", "grad_norm", "update_norm", "weight_norm")
"""What is read of the table ``layers``."""


class LayerMedians:
    """The quantities `QUANTITIES` of every tensor in the last recorded steps of one phase."""

    def __init__(self) -> None:
        self._medians = {name: OwnMedians() for name in QUANTITIES}
        self._steps: dict[str, int | None] = dict.fromkeys(QUANTITIES)
        self._began = 0

    def add(self, rows: pa.Table, began: int) -> None:
        """Take in rows in order of steps.

        Args:
            rows: of the table ``layers``.
            began: the first step of the phase; earlier phases have other parameters, and are forgotten.
        """
        if began != self._began:
            self._began = began
            self._forget()
        steps, _ = numbers(rows["step"])
        last = distinct(steps)[-LENGTH:]
        rows = rows.slice(int(np.searchsorted(steps, max(began, int(last[0])))))
        if not len(rows):
            return
        in_rows, names, figures = as_matrices(rows, list(COLUMNS[1:]))
        with np.errstate(divide="ignore", invalid="ignore"):
            figures["relative_update"] = figures["update_norm"] / figures["weight_norm"]
        for name in QUANTITIES:
            # Of a large model ‖Δw‖ is there in one recorded step of ten: the others tell nothing of it.
            there: Any = np.flatnonzero(~np.isnan(figures[name]).all(axis=1))
            if len(there):
                self._medians[name].add(names, figures[name][there])
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
