"""Rows of the trace while they are on the device: a buffer that crosses to the host once per flush."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tvlars_probe.optimizers.rules import number
from tvlars_probe.probes.readers.columns import COLUMNS, SPECTRAL
from tvlars_probe.probes.readers.pieces import COUNTS, FLAGS
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.shards import whole_of
from tvlars_probe.traces.manifest import now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from tvlars_probe.probes.readers.pieces import PieceSums
    from tvlars_probe.probes.rows.clipping import Clipped

_MOST_BYTES = 64 << 20
"""Memory of a buffer's figures, unless `_LEAST_ROWS` take more."""

_MOST_ROWS, _LEAST_ROWS = 4096, 16
"""Bounds of the number of rows; a full buffer is flushed."""


@dataclass(slots=True)
class StepRow:
    """What the host knows of one step; norms and loss are in the buffer's tensors.

    Attributes:
        recorded: whether the layers' norms are recorded in this step.
        active: per parameter, whether it took part in the step.
        unread: per parameter, whether its update_norm was left out in this step.
        lr: learning rate per parameter.
        phase: name of the training phase.
        due: whether all ranks were to record the layers' norms, which may have failed on this one.
        of_shards: (len(COLUMNS), parameters), whether a figure is that of this rank's shard; None where none is.
        to_fill: what fills figures that follow from those of whole tensors, each with the optimizer's parameters.
        spectral: (len(SPECTRAL), parameters), the spectral norms, on the device until the flush; None where the step
            has none. Few steps have: so they are no part of the buffer.
        spectral_read: per column and parameter, whether it was read; None where the step has none.
        pieces: what the pieces of the step's batch gave, on the device until the flush; None where they weren't read.
        device_lrs: learning rates that are tensors on an accelerator, each with the parameters that it holds for.
        phi: TVLARS' φ_t of the first parameter group, a tensor until the flush where it is on a device; NaN for other
            optimizers.
        epoch: as told.
        samples: this rank's samples as told.
        tokens: this rank's tokens as told, a tensor until the flush where they are on a device.
        clip_scale: as told by the loop.
        clipped: what the loop has clipped through the recorder; the buffer holds those of `StepBuffer.put_clipping`.
        loss_told: whether a loss was told.
        begun: indices of the optimizers that have begun a step.
        stepped: indices of the optimizers that have stepped, in that order.
        told: whether the loop has told of the step.
        step_seconds: the step's own seconds, see `StepClock`.
        probe_seconds: seconds that the recorder and its probes took.
        time: wall-clock time at the end of the step, UTC.
    """

    recorded: bool
    active: NDArray[np.bool_]
    unread: NDArray[np.bool_]
    lr: NDArray[np.float64]
    phase: str
    due: bool = False
    of_shards: NDArray[np.bool_] | None = None
    to_fill: list[tuple[slice, Callable[[Tensor], None]]] = field(default_factory=list)
    spectral: Tensor | None = None
    spectral_read: NDArray[np.bool_] | None = None
    pieces: PieceRow | None = None
    device_lrs: list[tuple[slice, Tensor]] = field(default_factory=list)
    phi: float | Tensor = math.nan
    epoch: int | None = None
    samples: int | None = None
    tokens: int | Tensor | None = None
    clip_scale: float | None = None
    clipped: list[Clipped] = field(default_factory=list)
    loss_told: bool = False
    begun: set[int] = field(default_factory=set)
    stepped: list[int] = field(default_factory=list)
    told: bool = False
    step_seconds: float = 0.0
    probe_seconds: float = 0.0
    time: datetime = field(default_factory=now)

    def forget(self, index: int, span: slice) -> None:
        """Take back the update of optimizer ``index``, whose parameters these are: it was skipped after all."""
        self.stepped.remove(index)
        self.active[span], self.lr[span] = False, math.nan
        self.phi = math.nan if index == 0 else self.phi


@dataclass(slots=True)
class PieceRow:
    """What the pieces of a step's batch gave: see `tvlars_probe.probes.readers.pieces.PieceSums`.

    Attributes:
        values: (3, parameters): Σ |h|²/w, Σ of the pieces' check sums, and the check sum of the gradient that step()
            used.
        counts: (optimizers, len(COUNTS)).
        flags: (optimizers, len(FLAGS)), on the host.
    """

    values: Tensor
    counts: Tensor
    flags: NDArray[np.bool_]


class StepBuffer:
    """Rows not yet on the host.

    Args:
        offsets: where each optimizer's parameters begin, and at last where they end.
        device: where the figures come from.

    Attributes:
        capacity: most rows.
        values: (capacity, len(COLUMNS), parameters), NaN where nothing is stored.
        losses: this rank's mean loss per row, NaN where not told.
        clips: (capacity, 2), the gradients' norm before clipping and the factor of it, NaN where not clipped by the
            recorder.
        skipped: (capacity, optimizers), whether the update was skipped after all; on the device, so that the host
            needn't wait.
        rows: what the host knows of each row; an open row stands last.
    """

    def __init__(self, offsets: Sequence[int], device: torch.device) -> None:
        self._offsets, parameters = offsets, offsets[-1]
        # As wide as possible: the table ``layers`` is float32, but findings and the norms of ``steps`` are of what was
        # read.
        dtype = accumulation_dtype(device)
        width = len(COLUMNS) * max(parameters, 1)
        self.capacity = max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_BYTES // (dtype.itemsize * width)))
        self.parameters = parameters
        self.values = torch.full((self.capacity, len(COLUMNS), parameters), math.nan, dtype=dtype, device=device)
        self.losses = torch.full((self.capacity,), math.nan, dtype=dtype, device=device)
        self.clips = torch.full((self.capacity, 2), math.nan, dtype=dtype, device=device)
        self.skipped = torch.zeros((self.capacity, len(offsets) - 1), dtype=torch.bool, device=device)
        self.rows: list[StepRow] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def full(self) -> bool:
        """Whether the next row needs a flush first."""
        return len(self.rows) >= self.capacity

    def open_row(self, *, recorded: bool, phase: str) -> StepRow:
        """Begin the next step's row."""
        active, unread = np.zeros((2, self.parameters), dtype=bool)
        self.rows.append(StepRow(recorded, active, unread, np.full(self.parameters, np.nan), phase=phase))
        return self.rows[-1]

    def drop_row(self) -> None:
        """Take the open row back: its update never happened."""
        # Blank again: the next row takes this place, and may store less.
        n = len(self.rows) - 1
        del self.rows[n]
        self.values[n].fill_(math.nan)
        self.losses[n].fill_(math.nan)
        self.clips[n].fill_(math.nan)
        self.skipped[n].fill_(value=False)

    def put(self, offset: int, reading: Tensor, active: Sequence[bool], unread: Sequence[bool]) -> None:
        """Store an optimizer's figures in the open row.

        Args:
            offset: where the optimizer's parameters begin.
            reading: (len(COLUMNS), parameters of the optimizer).
            active: per parameter, whether it took part.
            unread: per parameter, whether its update_norm was left out.
        """
        span = slice(offset, offset + reading.shape[1])
        self.values[len(self.rows) - 1, :, span].copy_(reading, non_blocking=True)
        self.rows[-1].active[span] = active
        self.rows[-1].unread[span] = unread

    def put_of_shards(self, offset: int, of_shards: Sequence[Sequence[bool]]) -> None:
        """Mark which of an optimizer's figures in the open row are those of this rank's shards.

        Args:
            offset: where the optimizer's parameters begin.
            of_shards: (len(COLUMNS), parameters of the optimizer).
        """
        row, marks = self.rows[-1], np.array(of_shards, dtype=bool)
        if row.of_shards is None:
            row.of_shards = np.zeros((len(COLUMNS), self.parameters), dtype=bool)
        row.of_shards[:, offset : offset + marks.shape[1]] = marks

    def put_spectral(self, rows: slice, offset: int, reading: Tensor, read: Sequence[bool]) -> None:
        """Store some of an optimizer's spectral norms in the open row.

        Args:
            rows: which of the columns `SPECTRAL`.
            offset: where the optimizer's parameters begin.
            reading: a row per column, a column per parameter of the optimizer.
            read: per parameter, whether it was read.
        """
        row, span = self.rows[-1], slice(offset, offset + reading.shape[1])
        if row.spectral is None or row.spectral_read is None:
            row.spectral = self.values.new_full((len(SPECTRAL), self.parameters), math.nan)
            row.spectral_read = np.zeros(row.spectral.shape, dtype=bool)
        row.spectral[rows, span].copy_(reading, non_blocking=True)
        row.spectral_read[rows, span] = read

    def put_pieces(self, index: int, taken: PieceSums, used: Tensor) -> None:
        """Store what the pieces of an optimizer's update gave in the open row.

        Args:
            index: of the optimizer.
            taken: what they gave.
            used: check sums of the gradients that it uses.
        """
        row, span = self.rows[-1], slice(self._offsets[index], self._offsets[index + 1])
        if row.pieces is None:
            blank = self.values.new_full((3, self.parameters), math.nan)
            optimizers = len(self._offsets) - 1
            counts = self.values.new_full((optimizers, len(COUNTS)), math.nan)
            row.pieces = PieceRow(blank, counts, np.zeros((optimizers, len(FLAGS)), dtype=bool))
        for into, values in zip(row.pieces.values[:, span], (taken.squares, taken.sums, used), strict=True):
            into.copy_(values, non_blocking=True)
        row.pieces.counts[index].copy_(taken.counts, non_blocking=True)
        row.pieces.flags[index] = taken.flags

    def put_lr(self, span: slice, lr: Any) -> None:
        """Store a group's learning rate; a rate that is on an accelerator is read at the flush."""
        row = self.rows[-1]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            row.device_lrs.append((span, lr.detach().clone()))
        else:
            row.lr[span] = number(lr)

    def put_loss(self, loss: Tensor | float) -> None:
        """Store the open row's loss without waiting for the device."""
        row = len(self.rows) - 1
        if isinstance(loss, Tensor):
            self.losses[row].copy_(loss.reshape(()), non_blocking=True)
        else:
            self.losses[row].fill_(loss)
        self.rows[-1].loss_told = True

    def put_clipping(self, clipping: Tensor) -> None:
        """Store the gradients' norm before clipping, and its factor, in the open row."""
        self.clips[len(self.rows) - 1].copy_(clipping, non_blocking=True)

    def put_skipped(self, index: int, found_inf: Tensor | None) -> None:
        """Mark the open row's update of optimizer ``index`` as none if it found an overflow inside its fused step."""
        # The flag isn't read here, where the host would wait for it: until the flush a skipped step has a row.
        if found_inf is not None:
            self.skipped[len(self.rows) - 1, index] = (whole_of(found_inf).reshape(()) > 0).to(self.skipped.device)

    def drain(self) -> Drained:
        """Take all rows to the host and empty the buffer."""
        n = len(self.rows)
        for row in self.rows:
            for span, lr in row.device_lrs:
                row.lr[span] = lr.item()
            row.phi = float(row.phi)
            row.tokens = int(row.tokens.item()) if isinstance(row.tokens, Tensor) else row.tokens
        measured = [row for row in self.rows if row.spectral is not None]
        if measured:
            on_host = torch.stack([row.spectral for row in measured if row.spectral is not None]).cpu()
            for row, figures in zip(measured, on_host, strict=True):
                row.spectral = figures
        # On the CPU ``.cpu().numpy()`` is the buffer's own memory, which is blanked below: hence the copies, which
        # ``astype`` makes, too.
        drained = Drained(
            rows=self.rows,
            values=self.values[:n].cpu().numpy().astype(np.float64),
            losses=self.losses[:n].cpu().numpy().astype(np.float64),
            clips=self.clips[:n].cpu().numpy().astype(np.float64),
            skipped=self.skipped[:n].cpu().numpy().copy(),
            offsets=self._offsets,
        )
        self.rows = []
        self.values[:n] = math.nan
        self.losses[:n] = math.nan
        self.clips[:n] = math.nan
        self.skipped[:n] = False
        return drained


@dataclass(slots=True)
class Drained:
    """Rows on the host.

    Attributes:
        rows: what the host knew of each.
        values: norms, of shape (rows, len(COLUMNS), parameters).
        losses: this rank's mean loss, NaN where not told.
        clips: (rows, 2), see `StepBuffer`.
        skipped: (rows, optimizers), whether a gradient scaler skipped the update inside a fused optimizer.
        offsets: where each optimizer's parameters begin, and at last where they end.
    """

    rows: list[StepRow]
    values: NDArray[np.float64]
    losses: NDArray[np.float64]
    clips: NDArray[np.float64]
    skipped: NDArray[np.bool_]
    offsets: Sequence[int]

    def without_skipped(self) -> Drained:
        """The updates that happened, and the rows that hold any."""
        if not self.skipped.any():
            return self
        for row, index in np.argwhere(self.skipped).tolist():
            self.rows[row].forget(index, slice(self.offsets[index], self.offsets[index + 1]))
        kept = np.array([bool(row.stepped) for row in self.rows])
        rows = [row for row in self.rows if row.stepped]
        figures = (self.values[kept], self.losses[kept], self.clips[kept], self.skipped[kept])
        return Drained(rows, *figures, self.offsets)
