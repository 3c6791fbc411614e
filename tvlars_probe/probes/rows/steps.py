"""The rows of the steps since the last flush, from the first hook of a step to what the loop tells of it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.optimizers.rules import number
from tvlars_probe.probes.events.clock import StepClock
from tvlars_probe.probes.readers.layout import Layout
from tvlars_probe.probes.readers.rates import LastRates
from tvlars_probe.probes.rows.buffer import StepBuffer
from tvlars_probe.probes.rows.clipping import clipped, norm_of_gradients, noted, read_after, together
from tvlars_probe.probes.rows.pieces import PieceRows
from tvlars_probe.probes.rows.telling import Telling
from tvlars_probe.traces.manifest import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.failures import ProbeFailures
    from tvlars_probe.probes.readers.norms import NormReader
    from tvlars_probe.probes.rows.buffer import Drained, StepRow
    from tvlars_probe.probes.rows.clipping import Clipped
    from tvlars_probe.probes.rows.reading_plan import ReadingPlan

_OF_WEIGHTS, _OF_UPDATES = slice(2), slice(2, 4)
"""The columns of `SPECTRAL` that are read before and after an update."""


class StepRows:
    """Fills the rows of a buffer.

    A row ends where the loop tells of it, and at the latest when an optimizer steps that already has. So it holds at
    most one update of each optimizer.

    Args:
        device: where the figures come from.
        plan: how much is read.
        ranks: the ranks of the run. Rank 0 reads norms; where parameters are DTensors, all ranks do.
        failures: applies the policy when reading norms raises.
        rates: lr × trust_ratio of each parameter's last update, by name, in a resumed run; else empty.

    Attributes:
        layout: which parameters there are.
        open: the row of the step that is being made or was made last; None between `close` and `begin`.
        clock: tells a step's own time from the recorder's.
        telling: watches where the loop tells of its steps.
        pieces: reads the gradients of the steps' pieces, where ``noise``.
        measures_layers: whether norms are read; false for "none", and once the ranks know that it has failed on one.
    """

    layout: Layout

    def __init__(
        self,
        device: torch.device,
        *,
        plan: ReadingPlan,
        ranks: Ranks,
        failures: ProbeFailures,
        rates: Mapping[str, float],
    ) -> None:
        self._device, self._plan, self._every, self._ranks = device, plan, plan.every, ranks
        self._reads_spectra = False
        self._failures = failures
        self.pieces = PieceRows(reads=plan.noise, every=plan.every, is_alone=ranks.world_size == 1)
        self._optimizers: Sequence[Optimizer] = ()
        self._buffer: StepBuffer | None = None
        self._rates = LastRates(rates)
        self.open: StepRow | None = None
        self.clock = StepClock()
        self.measures_layers = plan.detail != "none"
        self.telling = Telling()
        self._clipped: list[Clipped] = []
        self._unclipped: tuple[Sequence[Tensor], Tensor, bool] | None = None
        self._step, self._has_failed = 0, False

    def __len__(self) -> int:
        """Number of rows with an update; the open one may have none yet."""
        blank = self.open is not None and not self.open.stepped
        return 0 if self._buffer is None else len(self._buffer) - blank

    @property
    def buffer(self) -> StepBuffer:
        """Where the rows are."""
        assert self._buffer is not None, "the optimizers' parameters aren't known yet"
        return self._buffer

    @property
    def is_laid_out(self) -> bool:
        """Whether `lay_out` has been called."""
        return self._buffer is not None

    def lay_out(self, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
        """Learn the optimizers' parameters: at the start, and when they have changed.

        The buffer is a new one, so all rows must have been drained.
        """
        self._optimizers = optimizers
        self.layout = Layout(model, optimizers, updates=self._plan.detail == "full", ranks=self._ranks)
        self._buffer = StepBuffer(self.layout.offsets, self._device)
        self.pieces.lay_out(model, optimizers)

    def begin_phase(self) -> None:
        """Forget all rates: other optimizers follow, which have applied none yet."""
        self._rates = LastRates({})
        self.telling.begin_phase()

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._rates.read(self.layout, self._optimizers)

    def read_before_clipping(self, params: Sequence[Tensor], *, by_value: bool) -> None:
        """Read ‖g‖ before somebody else clips these tensors' gradients; it is read again before the update."""
        before = norm_of_gradients(params)
        self._unclipped = None if before is None else (params, before, by_value)

    def note_clipping(self, call: Clipped) -> None:
        """Keep what the loop has clipped for the update to come."""
        self._clipped = noted(self._clipped, call)

    def begins_another(self, index: int) -> bool:
        """Whether a step of optimizer ``index`` needs a new row.

        It does if none is open, if the open one has been told of or holds a step of this optimizer already, and if the
        optimizer's parameters are others than those of the layout.
        """
        row = self.open
        return row is None or row.told or index in row.stepped or not self.layout.holds(index)

    def was_seen(self, index: int) -> bool:
        """Whether `before` has been called for the step of optimizer ``index`` that has just been made."""
        return self.open is not None and index in self.open.begun and index not in self.open.stepped

    def begin(self, step: int, phase: str) -> None:
        """Open the row of ``step``."""
        due = self.measures_layers and step % self._every == 0
        self.telling.row_begins()
        self._step = step
        spectral = self._plan.spectral_every
        self._reads_spectra = spectral is not None and step % spectral == 0
        self.open = self.buffer.open_row(recorded=due and not self._has_failed, phase=phase)
        self.open.due = due

    def before(self, index: int) -> None:
        """Read what must be read before optimizer ``index`` makes its update of the open row's step."""
        assert self.open is not None
        if self.was_seen(index):
            self.open.clipped = []  # of a step that made no update, and of which this one is the next
        self.open.begun.add(index)
        self._put_clipping()
        if self.open.due and self.layout.is_sharded:
            # Also where reading has failed on this rank, of which the others may not know yet: they would wait.
            self._attempt(index, self.layout.readers[index].take_gradients)
        # Counted in recorded steps, so that large weights are copied in one recorded step of ten at any ``every``.
        self._read(index, lambda: self.layout.readers[index].before(self._step // self._every))
        if self.pieces.reads:
            due = self.open.due and not self._has_failed
            self._attempt(index, lambda: self.pieces.put(index, self.buffer if due else None))
        if self._reads_spectra:
            self._read(
                index, lambda: self._put_spectral(index, _OF_WEIGHTS, self.layout.spectral[index].before(self._step))
            )
        self.note_rates(index)

    def note_clipped_before(self, norm: float, max_norm: float) -> None:
        """Put what somebody else has clipped before the update just made into its row, if that is still open."""
        if self.open is not None and self.open.stepped:
            told = torch.tensor(norm, dtype=torch.float64)
            self.open.clipped = [clipped([], told, max_norm, 2.0)]
            self.buffer.put_clipping(together(self.open.clipped))

    def _put_clipping(self) -> None:
        """Put what was clipped since the last update into the open row."""
        assert self.open is not None
        if self._unclipped is not None and (read := read_after(*self._unclipped)) is not None:
            self._clipped = noted(self._clipped, read)
        if self._clipped:
            self.open.clipped += self._clipped
            self.buffer.put_clipping(together(self.open.clipped))
        self._clipped, self._unclipped = [], None

    def _put_spectral(self, index: int, rows: slice, found: tuple[Tensor, list[bool]]) -> None:
        self.buffer.put_spectral(rows, self.layout.offsets[index], *found)

    def note_rates(self, index: int) -> None:
        """Keep the rates of the update that optimizer ``index`` is making: a schedule may change them after it."""
        self._rates.note(index, self._optimizers[index])

    def after(self, index: int, started: float) -> None:
        """Read what optimizer ``index`` has done; the hook after its update was entered at ``started``."""
        optimizer, row, start = self._optimizers[index], self.open, self.layout.offsets[index]
        assert row is not None
        # A GradScaler sets ``found_inf`` on a fused optimizer during its step, to be read there only.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item() > 0:
            # Skipped: there was no update. Where reading the flag would make the host wait, a flush finds out.
            row.begun.discard(index)
            self.layout.spectral[index].forget()
            self.clock.probed(time.perf_counter() - started)
            return
        row.stepped.append(index)
        self.pieces.step_made(self._step, reads_on=self.measures_layers and not self._has_failed)
        for group, lr in zip(optimizer.param_groups, self._rates.lrs[index], strict=True):
            end = start + len(group["params"])
            self.buffer.put_lr(slice(start, end), lr)
            start = end
        reader = self.layout.readers[index]
        if index == 0:
            row.phi = reader.phi
        self.buffer.put_skipped(index, found_inf)

        def put() -> None:
            reading, active = reader.after()
            offset = self.layout.offsets[index]
            self.buffer.put(offset, reading, active, reader.unread)
            if self.layout.is_sharded:
                self.buffer.put_of_shards(offset, reader.of_shards)
                self._leave_to_flush(offset, reader, active)

        self._read(index, put)
        if self._reads_spectra:
            self._read(
                index, lambda: self._put_spectral(index, _OF_UPDATES, self.layout.spectral[index].after(self._step))
            )
        # The step's own time ends where the hook began; from there on it is the recorder's. Both are added up, since a
        # row may hold updates of several optimizers.
        row.time = now()
        row.step_seconds += self.clock.since_mark(started)
        self.clock.probed(time.perf_counter() - started)
        row.probe_seconds += self.clock.mark_end()

    @property
    def has_all_updates(self) -> bool:
        """Whether the open row has an update of every optimizer."""
        return self.open is not None and len(self.open.stepped) == len(self._optimizers)

    @property
    def first_lr(self) -> float:
        """Learning rate of the first parameter group in the update just made. On accelerators the host may wait."""
        return float(self._rates.lrs[0][0])

    @contextlib.contextmanager
    def probing_after_update(self) -> Iterator[None]:
        """Count the time spent inside as the probes' in the open row, and as no step's own."""
        started = time.perf_counter()
        try:
            with self.clock.paused():
                yield
        finally:
            if self.open is not None:
                self.open.probe_seconds += time.perf_counter() - started

    def _leave_to_flush(self, offset: int, reader: NormReader, active: Sequence[bool]) -> None:
        """Note what fills the trust ratios that follow from the norms of whole tensors, once those are known."""
        assert self.open is not None
        if not any(group.follows_from_norms for group in reader.groups) or reader.leaves_norms:
            return
        # A schedule writes into a rate that is a tensor.
        groups = [g._replace(lr=g.lr.clone() if isinstance(g.lr, Tensor) else g.lr) for g in reader.groups]

        def fill(table: Tensor) -> None:
            on_host = [g._replace(lr=number(g.lr)) for g in groups]
            reader.ratios.fill_from_norms(table, on_host, active)

        self.open.to_fill.append((slice(offset, offset + len(active)), fill))

    def _read(self, index: int, read: Callable[[], None]) -> None:
        """Read norms, if this row records any. After a failure neither this row nor later ones do."""
        reads = self._ranks.is_first or self.layout.is_sharded
        if self.open is not None and self.open.recorded and reads:
            self._attempt(index, read)

    def _attempt(self, index: int, read: Callable[[], None]) -> None:
        assert self.open is not None
        what = f"reading the norms of {type(self._optimizers[index]).__name__}"
        with self._failures.attempt(what, self._step) as attempt:
            read()
        if attempt.failed:
            self._has_failed, self.open.recorded = True, False

    def tell(self, loss: Tensor | float | None, told: Mapping[str, Any]) -> bool:
        """Put what the loop tells into the open row.

        Returns:
            False where no optimizer has stepped since the loop last told of a step: then nothing is stored.
        """
        row = self.open
        if row is None or row.told or not row.stepped:
            # No update since the last call: a gradient scaler skipped it, or log() stands before step().
            self._clipped, self._unclipped = [], None
            self.telling.told_in_vain()
            if row is None:
                self.telling.told_without_row()
            return False
        row.told = True
        for name, value in told.items():
            setattr(row, name, value)
        if loss is not None:
            self.buffer.put_loss(loss)
        return True

    def close(self) -> bool:
        """End the open row, if there is one, and return whether the loop told nothing of its step."""
        row, self.open = self.open, None
        if row is None:
            return False
        if not row.stepped:
            self.buffer.drop_row()  # the optimizer's step raised, or a gradient scaler skipped it
            return False
        self.telling.row_ends(row)
        return not row.told

    def misplaced_telling(self, steps: int, *, in_order: bool) -> list[str]:
        """What to warn of in a loop that seems to call ``log`` in the wrong place.

        Args:
            steps: number of updates made.
            in_order: whether the loop has come to its end; otherwise the open row may lack what was to come.
        """
        if in_order and self.open is not None and self.open.stepped:
            self.telling.row_ends(self.open)
        return [*self.telling.warnings(steps, self.open)]

    def drain(self) -> Drained:
        """Take all rows of updates that happened to the host."""
        self.pieces.attach()  # to parameters that have been unfrozen
        return self.buffer.drain().without_skipped()
