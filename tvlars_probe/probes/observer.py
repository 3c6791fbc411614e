"""What the recorder sees: hooks around optimizers' steps, and the rows they fill.

Rows stay on the device until they cross to the host with a flush; here the ranks agree on what all do in a step.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tvlars_probe.probes.agreement import Agreement, Decision
from tvlars_probe.probes.buffer import StepBuffer, StepRow, layer_columns, step_columns
from tvlars_probe.probes.clock import StepClock
from tvlars_probe.probes.crossing import over_ranks
from tvlars_probe.probes.findings import first_non_finite
from tvlars_probe.probes.hooks import attach
from tvlars_probe.probes.known_optimizers import number
from tvlars_probe.probes.layout import LastRates, Layout
from tvlars_probe.probes.rates import applied_rates
from tvlars_probe.probes.signals import children_may_wait
from tvlars_probe.traces.manifest import now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.traces.journal import Journal
    from tvlars_probe.traces.manifest import Manifest

Detail = Literal["full", "norms", "none"]


class StepObserver(ABC):
    """Watches optimizers' steps. Subclasses say how rows are written: `flush`.

    Attributes:
        path: the run directory.
        phase: written into each row: train, pretrain or linear.
        manifest: what stands in run.json; saved with each flush.
        journal: the writing side, None on ranks other than 0.
        diverged: whether the last loss told was not finite (on accelerators: known after a flush).
        stop_agreed: whether all ranks have learned of `request_stop`.
        checkpoint_agreed: whether all ranks have learned of `request_checkpoint`; until the next `state_dict`.
        interrupted: set it before leaving early: the status is then interrupted, not completed.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Sequence[Optimizer],
        path: Path,
        manifest: Manifest,
        *,
        detail: Detail,
        every: int,
        probes: Sequence[Probe],
        failures: ProbeFailures,
        resume: Mapping[str, Any] | None,
        distributed: bool | None,
    ) -> None:
        self.path, self.manifest = path, manifest
        self.journal: Journal | None = None
        self.diverged = self.stop_agreed = self.checkpoint_agreed = self.interrupted = False
        self._model, self._optimizers = model, optimizers
        self._detail, self._every, self._resume = detail, every, resume
        self._failures, self._probing, self._measures_layers = failures, True, detail != "none"
        self._device = next(p.device for o in optimizers for g in o.param_groups for p in g["params"])
        self._ranks = Agreement.of_process_group(self._device, distributed)
        self._written: int = resume["step"] if resume else 0
        self._samples: int | None = resume["samples"] if resume else 0
        self._last_epoch: int | None = resume.get("last_epoch") if resume else None
        self._rates = LastRates(resume["rates"] if resume else {})
        self._open: StepRow | None = None
        self._stop_wish = self._checkpoint_wish = self._flush_wish = self._lonely = self._is_laid_out = False
        self._is_recording, self._pid = False, os.getpid()
        self._logs_without_step = 0
        self._handles: list[Any] = []
        self._clock = StepClock()
        self._curvature = list(probes)
        for probe, state in zip(self._curvature, (resume or {}).get("probes", ()), strict=False):
            probe.load_state_dict(state)
        self.phase = resume["phase"] if resume else "train"

    @abstractmethod
    def flush(self) -> None:
        """Write all rows. Every rank calls it, in the same step."""

    @property
    def step(self) -> int:
        """Number of updates so far: the next step's index."""
        return self._written + (len(self._buffer) if self._is_laid_out else 0)

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._rates.read(self._layout, self._optimizers)

    def _attach(self) -> None:
        for index, optimizer in enumerate(self._optimizers):
            self._handles += attach(optimizer, partial(self._on_before, index), partial(self._on_after, index))
        self._clock = StepClock()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _lay_out(self) -> None:
        """Learn the optimizers' parameters: at the start, and when one has got more."""
        self._layout = Layout(self._model, self._optimizers, updates=self._detail == "full")
        self._buffer = StepBuffer(len(self._layout.names), self._device)
        self._is_laid_out = True

    # The hooks.

    def _on_before(self, index: int) -> None:
        if os.getpid() != self._pid:
            return  # a forked child that trains on: the run is its parent's
        start = time.perf_counter()
        with torch.no_grad():
            self._before(index)
        self._clock.probed(time.perf_counter() - start)

    def _on_after(self, index: int) -> None:
        if os.getpid() != self._pid:
            return
        start = time.perf_counter()
        if self._open is None or index in self._open.stepped:
            self._begin_row()  # an optimizer that never called its closure: nothing was seen before its update
            self._rates.note(index, self._optimizers[index])
        row = self._open
        assert row is not None
        with torch.no_grad():
            self._after(index, row)
        row.step_seconds += self._clock.since_mark(start)
        self._clock.probed(time.perf_counter() - start)
        row.probe_seconds += self._clock.mark_end()

    def _before(self, index: int) -> None:
        """Just before an optimizer's update: the weights are w, the gradients g."""
        if self._open is None or index in self._open.stepped:
            self._begin_row()
        if self._measures():
            with self._reading_norms(index):
                self._layout.probes[index].before((self.step - 1) // self._every)
        self._rates.note(index, self._optimizers[index])

    @contextlib.contextmanager
    def _reading_norms(self, index: int) -> Iterator[None]:
        """After a failure inside, this step and the following ones have no rows in ``layers``."""
        before = self._failures.found
        with self._failures.guard(f"reading the norms of {type(self._optimizers[index]).__name__}", self.step - 1):
            yield
        if self._failures.found is not before:
            assert self._open is not None
            self._measures_layers = self._open.recorded = False

    def _after(self, index: int, row: StepRow) -> None:
        """Just after it."""
        optimizer, start = self._optimizers[index], self._layout.offsets[index]
        row.stepped.add(index)
        for group, lr in zip(optimizer.param_groups, self._rates.lrs[index], strict=True):
            end = start + len(group["params"])
            self._buffer.put_lr(slice(start, end), lr)
            start = end
        if index == 0 and hasattr(optimizer, "phi_of"):
            row.phi = optimizer.phi_of(optimizer.param_groups[0])
        self._buffer.put_skipped(getattr(optimizer, "found_inf", None))
        if self._measures():
            with self._reading_norms(index):
                probe = self._layout.probes[index]
                reading, active = probe.after()
                self._buffer.put(self._layout.offsets[index], reading, active, probe.unread)
        row.time = now()

    def _measures(self) -> bool:
        """Whether the layers of this step are recorded, and by this rank."""
        return self._open is not None and self._open.recorded and self._ranks.rank == 0

    def _begin_row(self) -> None:
        self._close_row()
        if not self._layout.is_current:
            with children_may_wait():
                self._cross()
            self._lay_out()
        elif self._flush_wish or self._buffer.full:
            self.flush()
        self._measure_curvature()
        recorded = self._measures_layers and self.step % self._every == 0
        self._open = self._buffer.open_row(recorded=recorded, phase=self.phase)

    def _measure_curvature(self) -> None:
        """Let the probes measure the state before this update; every rank takes part."""
        step = self.step
        for probe in self._curvature:
            before, due = self._failures.found, True  # one that can't tell has failed
            with self._failures.guard(type(probe).__name__, step):
                due = probe.due(step)
            if not due or (probe.has_budget and not self._ranks.from_first(probe.affordable())):
                continue
            if self._failures.found is before:
                with self._failures.guard(type(probe).__name__, step):
                    columns = probe.measure(step, self.phase, self._applied_rates(step) if self.last_rates() else None)
                    if self.journal is not None and columns:
                        self.journal.append("curvature", columns)
            if self._ranks.any(self._failures.found is not before):
                self._stop_probing()
                return

    def _stop_probing(self) -> None:
        """A probe has failed on some rank: nothing but what the loop tells is recorded from now on, on any."""
        self._curvature.clear()
        self._probing = self._measures_layers = False
        if self._ranks.rank == 0:
            self._failures.announce(self.manifest, self.step)

    def _applied_rates(self, step: int) -> Rates:
        return applied_rates(self._model, self._optimizers, scaled_lr=self.last_rates(), step=step - 1)

    def _close_row(self) -> None:
        if self._open is not None and not self._open.stepped:
            self._buffer.drop_row()  # the optimizer's step raised
        elif self._open is not None and not self._open.steps_told:
            self._agree(None)
        self._open = None

    def _agree(self, loss: Tensor | float | None) -> None:
        on_host = not isinstance(loss, Tensor) or loss.device.type == "cpu"
        bad = loss is not None and on_host and not math.isfinite(number(loss))
        due = self.journal is not None and self.journal.due
        failed = self._failures.found is not None and self._probing
        wish = Decision(due, self._checkpoint_wish, self._stop_wish, bad, failed)
        decision = self._ranks.decide(self.step, wish)
        self._flush_wish |= decision.flush
        self.stop_agreed |= decision.stop
        self.checkpoint_agreed |= decision.checkpoint
        if decision.probe_failed:
            self._stop_probing()
        if on_host and loss is not None:
            self.diverged = decision.bad_loss

    def _cross(self) -> None:
        """Take the buffer's rows to the host and hand them to the journal."""
        drained = self._buffer.drain().without_skipped()
        losses, seen, self._samples = over_ranks(drained, self._ranks, self._samples)
        first_step = self._written
        self._written += len(drained.rows)
        told = [i for i, row in enumerate(drained.rows) if row.loss_told]
        if told:
            self.diverged = not math.isfinite(losses[told[-1]])
        if self._lonely:  # this rank's mean isn't that of all
            for row in drained.rows:
                row.loss_told = False
            seen[:] = -1
        if self.journal is None or not drained.rows:
            return
        names = self._layout.names
        self.manifest.finding = self.manifest.finding or first_non_finite(drained, losses, first_step, names)
        self.journal.append("steps", step_columns(drained, first_step, seen, losses))
        self.journal.append("layers", layer_columns(drained, first_step, names, self._layout.nulls))
