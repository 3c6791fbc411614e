"""What a flush does with the drained rows: means over the ranks, first bad tensor, tables."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tvlars_probe.findings.non_finite import first_non_finite
from tvlars_probe.findings.window import Window
from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.rows.beyond_single import BEYOND_SINGLE, beyond_single
from tvlars_probe.probes.rows.noise import REASONS, noise_columns, noise_of
from tvlars_probe.probes.rows.sharded import leave_out_shards, make_whole
from tvlars_probe.probes.rows.table_columns import clip_scales, layer_columns, step_columns
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.traces.gaps import Gap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.findings.window import Tensors
    from tvlars_probe.probes.readers.layout import Layout
    from tvlars_probe.probes.rows.buffer import Drained
    from tvlars_probe.probes.rows.finding import Finder
    from tvlars_probe.probes.rows.noise import NoiseOfSteps
    from tvlars_probe.traces.journal import Journal


UNITS = ("samples", "tokens")
"""What a loop may count in a step. Where several are told, the last of them weighs the losses of the ranks."""


class Crossing:
    """The way of the rows from the device into the journal.

    Args:
        written: number of updates whose rows have crossed before.
        seen: samples and tokens seen in those updates, over all ranks; None where unknown.
        finder: looks at the rows for what is wrong.
        noise: whether the rows hold what pieces gave.
        lacking: how many steps before had no noise; see the attribute.

    Attributes:
        written: number of updates whose rows have crossed.
        seen: samples and tokens seen in them, over all ranks; None where unknown.
        alone: whether the other ranks may be gone. Then figures over all ranks are null.
        lacking: how many recorded steps have no noise, by the key of `tvlars_probe.probes.rows.noise.REASONS`.
    """

    def __init__(
        self, written: int, seen: Mapping[str, int | None], finder: Finder, *, noise: bool, lacking: Mapping[str, int]
    ) -> None:
        self.written, self.seen = written, {unit: seen.get(unit) for unit in UNITS}
        self.alone = False
        self._finder, self._noise = finder, noise
        self.lacking = Counter({reason: number for reason, number in lacking.items() if reason in REASONS})

    def cross(self, drained: Drained, ranks: Ranks, layout: Layout, journal: Journal | None) -> float | None:
        """Hand the rows to the journal, on the rank that has one. Every rank calls it, in the same step.

        Of sharded parameters the norms become those of whole tensors first: see `tvlars_probe.probes.rows.sharded`.

        Returns:
            the last loss told, over all ranks; None where none was.
        """
        left_out: list[int] = []
        if layout.is_sharded and self.alone:
            left_out = leave_out_shards(drained)
        elif layout.is_sharded:
            make_whole(drained, ranks, layout)
        found = over_ranks(drained, ranks, self.seen)
        self.seen = found.after
        # Counted on every rank, also where nothing is written: all ranks are in the same step.
        first_step = self.written
        self.written += len(drained.rows)
        losses, told = found.losses, found.told
        noise = None
        if self._noise and not self.alone:
            noise = noise_of(drained, ranks, layout.tensors.rounding, clip_scales(drained))
        last = float(losses[told][-1]) if told.any() else None
        if self.alone:  # this rank's mean isn't that of all
            told[:] = False
            for counts in found.seen.values():
                counts[:] = -1
        for row, is_told in zip(drained.rows, told.tolist(), strict=True):
            row.loss_told = is_told
        if journal is not None and drained.rows:
            steps = step_columns(drained, first_step, found.seen, losses)
            window = window_of(drained, first_step, losses, steps, layout.tensors, noise)
            # The first finding stays: what isn't finite later may follow from it.
            journal.manifest.finding = journal.manifest.finding or first_non_finite(window)
            if not any(note.startswith(BEYOND_SINGLE) for note in journal.manifest.notes):
                journal.manifest.notes += filter(None, [beyond_single(drained, first_step, layout.names)])
            if told.any():
                journal.manifest.note_loss_mean(found.weighed_by)
            if left_out:
                first, final = first_step + left_out[0], first_step + left_out[-1]
                reason = "the tensors are sharded, and the ranks couldn't sum their norms any more"
                journal.manifest.gaps.append(Gap("layers", first, final, reason))
            journal.append("steps", steps)
            journal.append("layers", layer_columns(drained, first_step, layout.names, layout.nulls))
            if noise is not None:
                self._append_noise(noise, first_step, drained, layout, journal)
            self._finder.look(window, journal)
        return last

    def _append_noise(
        self, noise: NoiseOfSteps, first_step: int, drained: Drained, layout: Layout, journal: Journal
    ) -> None:
        self.lacking.update(noise.reasons)
        phases = [row.phase for row in drained.rows]
        if columns := noise_columns(noise, first_step, layout.names, phases, layout.precisions):
            journal.append("noise", columns)


def window_of(
    drained: Drained,
    first_step: int,
    losses: NDArray[np.float64],
    steps: Mapping[str, Any],
    tensors: Tensors,
    noise: NoiseOfSteps | None = None,
) -> Window:
    """The drained rows as rules look at them.

    Args:
        drained: the rows.
        first_step: index of the first.
        losses: mean losses over all ranks.
        steps: their columns of the table ``steps``.
        tensors: what is known of the parameters.
        noise: what their pieces tell of the gradient's noise.
    """

    def numbers(column: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = steps[column].to_numpy(zero_copy_only=False)
        return values

    before, used = numbers("grad_norm_before_clipping"), numbers("grad_norm")
    shape = len(drained.rows), len(tensors.names)
    return Window(
        first_step=first_step,
        losses=losses,
        told=np.array([row.loss_told for row in drained.rows], dtype=bool),
        grad_norms=np.where(np.isnan(before), used, before),
        before_clipping=~np.isnan(before),
        phi=numbers("phi"),
        active=np.array([row.active & row.recorded for row in drained.rows], dtype=bool).reshape(shape),
        lr=np.array([row.lr for row in drained.rows], dtype=np.float64).reshape(shape),
        figures={name: drained.values[:, k] for k, name in enumerate(COLUMNS)},
        tensors=tensors,
        **_window_of_noise(noise),
    )


def _window_of_noise(noise: NoiseOfSteps | None) -> dict[str, Any]:
    if noise is None:
        return {}
    return {
        "batches": noise.batches,
        "gradient_square": noise.whole(noise.gradient_square),
        "noise_trace": noise.whole(noise.noise_trace),
    }


def is_bad(loss: float | None) -> bool:
    """Whether a loss was told and isn't finite."""
    return loss is not None and not math.isfinite(loss)


@dataclass(frozen=True, slots=True)
class OverRanks:
    """What the ranks told of some steps, taken together.

    Attributes:
        losses: mean losses.
        told: whether any rank told a loss.
        weighed_by: what the means weigh by: one of `UNITS`; "ranks" where all ranks weigh the same; "mixed" where the
            steps differ.
        seen: by unit, what was seen up to each step; −1 where unknown.
        after: by unit, what was seen after the last step; None where unknown.
    """

    losses: NDArray[np.float64]
    told: NDArray[np.bool_]
    weighed_by: str
    seen: dict[str, NDArray[np.int64]]
    after: dict[str, int | None]


def over_ranks(drained: Drained, ranks: Ranks, before: Mapping[str, int | None]) -> OverRanks:
    """Mean losses over all ranks, and the samples and tokens seen up to each step.

    The mean is Σ n·loss / Σ n over the ranks that told a loss, with n a rank's tokens in that step, or its samples
    where not every rank told its tokens. Where not every rank told those either, all weigh the same.

    Args:
        drained: this rank's rows.
        ranks: all of them call this in the same step.
        before: by unit, what was seen before these rows; None where unknown.
    """
    told = np.array([row.loss_told for row in drained.rows], dtype=bool)
    losses = np.where(told, drained.losses, 0.0)
    counts, known = {}, {}
    for unit in UNITS:
        numbers = [getattr(row, unit) for row in drained.rows]
        known[unit] = np.array([number is not None for number in numbers], dtype=bool)
        counts[unit] = np.array([number or 0 for number in numbers], dtype=np.float64)
    if ranks.world_size > 1:
        sums = [losses, told]
        for unit in UNITS:
            # A rank without samples, or without a loss, has no mean: its NaN must not reach a sum.
            weights = counts[unit] * told
            sums += [np.where(weights > 0, losses, 0.0) * weights, weights, counts[unit], ~known[unit]]
        table = torch.tensor(np.array(sums, np.float64), dtype=accumulation_dtype(ranks.device), device=ranks.device)
        plain, tellers, *of_units = ranks.sum(table).cpu().numpy().astype(np.float64)
        told = tellers > 0
        # At least 1: a step in which no rank has samples is no division by zero.
        losses = plain / np.maximum(tellers, 1)
        for k, unit in enumerate(UNITS):
            weighted, weights, count, unknown = of_units[4 * k : 4 * k + 4]
            counts[unit], known[unit] = count, unknown == 0
            losses = np.where(known[unit], weighted / np.maximum(weights, 1), losses)
    weighed_by = np.full(len(told), "ranks", dtype=object)
    for unit in UNITS:
        weighed_by[known[unit]] = unit
    kinds = {*weighed_by[told]}
    totals = {unit: _running(counts[unit], known[unit], before[unit]) for unit in UNITS}
    return OverRanks(
        losses,
        told,
        weighed_by=kinds.pop() if len(kinds) == 1 else "mixed",
        seen={unit: seen for unit, (seen, _) in totals.items()},
        after={unit: after for unit, (_, after) in totals.items()},
    )


def _running(
    counts: NDArray[np.float64], known: NDArray[np.bool_], total: int | None
) -> tuple[NDArray[np.int64], int | None]:
    """The total up to each step, and after the last; −1 and None where unknown."""
    seen = np.full(len(known), -1, dtype=np.int64)
    # After one step of unknown size it is unknown for good.
    for i, (is_known, count) in enumerate(zip(known, counts, strict=True)):
        total = total + int(count) if is_known and total is not None else None
        seen[i] = -1 if total is None else total
    return seen, total
