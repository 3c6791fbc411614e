"""The rows of the steps since the last flush, from the first hook of a step to what the loop tells of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.probes.events.clock import StepClock
from tvlars_probe.probes.readers.layout import Layout
from tvlars_probe.probes.readers.rates import LastRates
from tvlars_probe.probes.rows.buffer import StepBuffer
from tvlars_probe.traces.manifest import now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.probes.failures import ProbeFailures
    from tvlars_probe.probes.rows.buffer import Drained, StepRow

Detail = Literal["full", "norms", "none"]
"""How much is read of the layers: all norms, all but ‖Δw‖, or nothing."""


class StepRows:
    """Fills the rows of a buffer; a row holds one update of each optimizer.

    Args:
        device: where the figures come from.
        detail: "full", "norms" (without ‖Δw‖) or "none" (no figures of layers).
        every: n, to record the layers in steps 0, n, 2n, ...
        reads: whether this process reads norms: rank 0 does.
        failures: applies the policy when reading norms raises.
        rates: lr × trust_ratio of each parameter's last update, by name, in a resumed run; else empty.

    Attributes:
        layout: which parameters there are.
        open: the row of the step that is being made or was made last; None between `close` and `begin`.
        clock: tells a step's own time from the recorder's.
        measures_layers: whether norms are read; false for "none", and after a failure.
    """

    layout: Layout

    def __init__(
        self,
        device: torch.device,
        *,
        detail: Detail,
        every: int,
        reads: bool,
        failures: ProbeFailures,
        rates: Mapping[str, float],
    ) -> None:
        self._device, self._detail, self._every, self._reads = device, detail, every, reads
        self._failures = failures
        self._optimizers: Sequence[Optimizer] = ()
        self._buffer: StepBuffer | None = None
        self._rates = LastRates(rates)
        self.open: StepRow | None = None
        self.clock = StepClock()
        self.measures_layers = detail != "none"
        self._told_between = 0

    def __len__(self) -> int:
        return 0 if self._buffer is None else len(self._buffer)

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
        self.layout = Layout(model, optimizers, updates=self._detail == "full")
        self._buffer = StepBuffer(len(self.layout.names), self._device)

    def forget_rates(self) -> None:
        """Forget all rates: other optimizers follow, which have applied none yet."""
        self._rates = LastRates({})

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._rates.read(self.layout, self._optimizers)

    def begins_another(self, index: int) -> bool:
        """Whether a step of optimizer ``index`` needs a new row: the open one has a step of it, or none is open."""
        return self.open is None or index in self.open.stepped

    def begin(self, step: int, phase: str) -> None:
        """Open the row of ``step``."""
        recorded = self.measures_layers and step % self._every == 0
        self.open = self.buffer.open_row(recorded=recorded, phase=phase)

    def before(self, index: int, step: int) -> None:
        """Read what must be read before optimizer ``index`` makes its update of ``step``."""
        # Counted in recorded steps, so that large weights are copied in one recorded step of ten at any ``every``.
        self._read(index, step, lambda: self.layout.readers[index].before(step // self._every))
        self.note_rates(index)

    def note_rates(self, index: int) -> None:
        """Keep the rates of the update that optimizer ``index`` is making: a schedule may change them after it."""
        self._rates.note(index, self._optimizers[index])

    def after(self, index: int, step: int, started: float) -> None:
        """Read what optimizer ``index`` has done in ``step``; the hook after its update was entered at ``started``."""
        optimizer, row, start = self._optimizers[index], self.open, self.layout.offsets[index]
        assert row is not None
        row.stepped.add(index)
        for group, lr in zip(optimizer.param_groups, self._rates.lrs[index], strict=True):
            end = start + len(group["params"])
            self.buffer.put_lr(slice(start, end), lr)
            start = end
        reader = self.layout.readers[index]
        if index == 0:
            row.phi = reader.phi
        # A GradScaler sets ``found_inf`` on a fused optimizer during its step, to be read there only.
        self.buffer.put_skipped(getattr(optimizer, "found_inf", None))

        def put() -> None:
            reading, active = reader.after()
            self.buffer.put(self.layout.offsets[index], reading, active, reader.unread)

        self._read(index, step, put)
        # The step's own time ends where the hook began; from there on it is the recorder's. Both are added up, since a
        # row may hold updates of several optimizers.
        row.time = now()
        row.step_seconds += self.clock.since_mark(started)
        self.clock.probed(time.perf_counter() - started)
        row.probe_seconds += self.clock.mark_end()

    def _read(self, index: int, step: int, read: Callable[[], None]) -> None:
        """Read norms, if this row records any. After a failure neither this row nor later ones do."""
        if self.open is None or not self.open.recorded or not self._reads:
            return
        what = f"reading the norms of {type(self._optimizers[index]).__name__}"
        with self._failures.attempt(what, step) as attempt:
            read()
        if attempt.failed:
            self.measures_layers = self.open.recorded = False

    def tell(self, loss: Tensor | float | None, told: Mapping[str, Any]) -> bool:
        """Put what the loop tells into the open row.

        Returns:
            False where no optimizer has stepped since the loop last told of a step: then nothing is stored.
        """
        row = self.open
        if row is None or row.steps_told == len(row.stepped):
            # No update since the last call: a gradient scaler skipped it, or log() stands before step().
            self._told_between += row is None
            return False
        row.steps_told = len(row.stepped)
        for name, value in told.items():
            setattr(row, name, value)
        if loss is not None:
            self.buffer.put_loss(loss)
        return True

    def misplaced_telling(self, steps: int) -> str | None:
        """Return a warning for a loop that seems to call ``log`` in the wrong place; None for any other.

        Args:
            steps: number of updates made.
        """
        row = self.open
        if self._told_between and not steps:
            return (
                "rec.log() was called, but no step of the optimizer was seen: record the optimizer whose step() is "
                "called (of a wrapper the inner one), and call rec.log() after it"
            )
        if self._told_between == 1 and steps > 1 and row is not None and not row.steps_told:
            return (
                "rec.log() was called before the first optimizer.step(), and not after the last: each call told of the "
                "step before. Call it after step()"
            )
        return None

    def close(self) -> bool:
        """End the open row, if there is one, and return whether the loop told nothing of its step."""
        row, self.open = self.open, None
        if row is not None and not row.stepped:
            self.buffer.drop_row()  # the optimizer's step raised
        return row is not None and bool(row.stepped) and not row.steps_told

    def drain(self) -> Drained:
        """Take all rows of updates that happened to the host."""
        return self.buffer.drain().without_skipped()
