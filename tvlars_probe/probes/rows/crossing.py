"""What a flush does with the drained rows: means over the ranks, first bad tensor, tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.probes.rows.findings import BEYOND_SINGLE, beyond_single, first_non_finite
from tvlars_probe.probes.rows.table_columns import layer_columns, step_columns
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.readers.layout import Layout
    from tvlars_probe.probes.rows.buffer import Drained
    from tvlars_probe.traces.journal import Journal


class Crossing:
    """The way of the rows from the device into the journal.

    Args:
        written: number of updates whose rows have crossed before.
        samples: samples seen in those updates, over all ranks; None where unknown.

    Attributes:
        written: number of updates whose rows have crossed.
        samples: samples seen in them, over all ranks; None where unknown.
        alone: whether the other ranks may be gone. Then figures over all ranks are null.
    """

    def __init__(self, written: int, samples: int | None) -> None:
        self.written, self.samples = written, samples
        self.alone = False

    def cross(self, drained: Drained, ranks: Ranks, layout: Layout, journal: Journal | None) -> float | None:
        """Hand the rows to the journal, on the rank that has one. Every rank calls it, in the same step.

        Returns:
            the last loss told, over all ranks; None where none was.
        """
        losses, told, seen, self.samples = over_ranks(drained, ranks, self.samples)
        # Counted on every rank, also where nothing is written: all ranks are in the same step.
        first_step = self.written
        self.written += len(drained.rows)
        last = float(losses[told][-1]) if told.any() else None
        if self.alone:  # this rank's mean isn't that of all
            told[:] = False
            seen[:] = -1
        for row, is_told in zip(drained.rows, told.tolist(), strict=True):
            row.loss_told = is_told
        if journal is not None and drained.rows:
            # The first finding stays: what isn't finite later may follow from it.
            found = first_non_finite(drained, losses, first_step, layout.names)
            journal.manifest.finding = journal.manifest.finding or found
            if not any(note.startswith(BEYOND_SINGLE) for note in journal.manifest.notes):
                journal.manifest.notes += filter(None, [beyond_single(drained, first_step, layout.names)])
            journal.append("steps", step_columns(drained, first_step, seen, losses))
            journal.append("layers", layer_columns(drained, first_step, layout.names, layout.nulls))
        return last


def is_bad(loss: float | None) -> bool:
    """Whether a loss was told and isn't finite."""
    return loss is not None and not math.isfinite(loss)


def over_ranks(
    drained: Drained, ranks: Ranks, samples: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], int | None]:
    """Mean losses over all ranks' samples, and the samples seen up to each step.

    The mean is Σ n·loss / Σ n over the ranks that told a loss, with n a rank's samples in that step. Where a rank told
    no number of samples, all weigh the same.

    Args:
        drained: this rank's rows.
        ranks: all of them call this in the same step.
        samples: samples seen before these rows; None where unknown.

    Returns:
        the losses, whether any rank told one, the samples seen up to each step (−1 where unknown), and those seen after
        the last one (None where unknown).
    """
    losses = drained.losses
    told = np.array([row.loss_told for row in drained.rows], dtype=bool)
    known = np.array([row.samples is not None for row in drained.rows], dtype=bool)
    counts = np.array([row.samples or 0 for row in drained.rows], dtype=np.float64)
    if ranks.world_size > 1:
        # A rank without samples, or without a loss, has no mean: its NaN must not reach a sum.
        weights = counts * told
        sums = [
            np.where(weights > 0, losses * weights, 0.0), weights,
            np.where(told, losses, 0.0), told, counts, ~known,
        ]  # fmt: skip
        table = torch.tensor(np.array(sums, np.float64), dtype=accumulation_dtype(ranks.device), device=ranks.device)
        weighted, weights, plain, tellers, counts, unknown = ranks.sum(table).cpu().numpy().astype(np.float64)
        told, known = tellers > 0, unknown == 0
        # At least 1: a step in which no rank has samples is no division by zero.
        losses = np.where(known, weighted / np.maximum(weights, 1), plain / np.maximum(tellers, 1))
    seen = np.full(len(known), -1, dtype=np.int64)
    # A running sum: after one step of unknown size it is unknown for good.
    for i, (is_known, count) in enumerate(zip(known, counts, strict=True)):
        samples = samples + int(count) if is_known and samples is not None else None
        seen[i] = -1 if samples is None else samples
    return losses, told, seen, samples
