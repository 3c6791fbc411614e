"""The recorder: hooks on any torch optimizer that fill a run's trace.

::

    with tvlars_probe.record(model, optimizer, "runs/mine") as rec:
        for x, y in batches:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()                        # hooks record
            rec.log(loss=loss, samples=len(x))      # what isn't told is null

A step of the trace is one update of every optimizer: a new one begins when an optimizer steps that already has.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tvlars_probe.errors import RunDirectoryError, StorageError, UserError
from tvlars_probe.probes.agreement import Agreement, Decision
from tvlars_probe.probes.buffer import StepBuffer, StepRow, layer_columns, step_columns
from tvlars_probe.probes.clock import StepClock
from tvlars_probe.probes.crossing import over_ranks
from tvlars_probe.probes.failures import OnProbeError, ProbeFailures
from tvlars_probe.probes.findings import first_non_finite
from tvlars_probe.probes.hooks import attach
from tvlars_probe.probes.known_optimizers import number, scalar
from tvlars_probe.probes.layout import LastRates, Layout, note_parameters
from tvlars_probe.probes.rates import applied_rates
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest, now
from tvlars_probe.traces.run_directory import new_run_id

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.failures import Probe

Detail = Literal["full", "norms", "none"]


def record(
    model: nn.Module | None,
    optimizer: Optimizer | Sequence[Optimizer],
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    detail: Detail = "full",
    every: int = 1,
    probes: Sequence[Probe] = (),
    on_probe_error: OnProbeError = "warn",
    manifest: Manifest | None = None,
    resume: Mapping[str, Any] | None = None,
    distributed: bool | None = None,
) -> Recorder:
    """Record a training loop of any kind into the run directory ``path``. Use it as a context manager.

    Args:
        model: whose parameters give the rows their names; DDP and compiled wrappers are seen through.
        optimizer: one optimizer or several; parameters added later are followed.
        path: a folder that doesn't exist yet (or, with ``resume``, the run to continue).
        config: settings of yours to keep in the manifest.
        total_steps: updates that the run is going to make, if known.
        detail: "full" records all norms, "norms" leaves out update_norm, "none" leaves out the table ``layers``.
        every: record the layers in every so many steps.
        probes: what else is measured before updates, such as `SharpnessProbe`; fills the table ``curvature``.
        on_probe_error: when a probe or the reading of norms raises, "warn" goes on recording only what the loop tells,
            with a warning and a note in the manifest; "raise" ends the run.
        manifest: further facts to keep in the manifest.
        resume: a ``state_dict()`` of this recorder: continue from there, later rows are set aside.
        distributed: with a `torch.distributed` process group, every rank calls ``record``, rank 0 writes and losses
            are averaged over ranks; False records this process alone.

    Raises:
        RunDirectoryError: on entering, if the folder holds something already or can't be written.
        UserError: a setting outside its range.
    """
    if detail not in get_args(Detail):
        raise UserError(f"unknown detail {detail!r} (known: {', '.join(get_args(Detail))})")
    if every < 1:
        raise UserError(f"every={every}: the layers can be recorded in every step (1) or fewer (2, 3, ...)")
    optimizers: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
        given = ", ".join(type(one).__name__ for one in optimizers) or "none"
        raise UserError(
            f"record() needs a torch.optim.Optimizer or a list of them, got {given} (give a wrapper's inner optimizer)"
        )
    facts = manifest or Manifest(run_id=new_run_id(Path(path)))
    facts.config = dict(config) if config is not None else facts.config
    facts.total_steps = total_steps if total_steps is not None else facts.total_steps
    return Recorder(
        model,
        optimizers,
        Path(path),
        facts,
        detail=detail,
        every=every,
        probes=probes,
        failures=ProbeFailures(on_probe_error),
        resume=resume,
        distributed=distributed,
    )


class Recorder:
    """Records a training loop; made by `record`.

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
        self._logs_without_step = 0
        self._handles: list[Any] = []
        self._clock = StepClock()
        self._curvature = list(probes)
        for probe, state in zip(self._curvature, (resume or {}).get("probes", ()), strict=False):
            probe.load_state_dict(state)
        self.phase = resume["phase"] if resume else "train"

    # What the loop calls.

    @property
    def step(self) -> int:
        """Number of updates so far: the next step's index."""
        return self._written + (len(self._buffer) if self._is_laid_out else 0)

    def log(
        self,
        *,
        loss: Tensor | float | None = None,
        samples: int | None = None,
        epoch: int | None = None,
        clip_scale: float | None = None,
    ) -> None:
        """Tell of the step just made; call it once after ``optimizer.step()``, on every rank.

        Args:
            loss: mean loss of this rank's samples.
            samples: number of this rank's samples.
            epoch: counted from 0.
            clip_scale: factor by which gradient clipping scaled the gradient, 1 where it didn't.
        """
        if not self._is_laid_out:
            raise UserError("the recorder isn't recording: use it as 'with tvlars_probe.record(...) as rec:'")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise UserError(f"rec.log(loss=...) takes the mean loss, one number; got a tensor of {tuple(loss.shape)}")
        told: dict[str, Any] = {"samples": samples, "epoch": epoch, "clip_scale": clip_scale}
        told = {name: scalar(name, value) for name, value in told.items() if value is not None}
        row = self._open
        if row is None or row.steps_told == len(row.stepped):
            # No update since the last call: a gradient scaler skipped it, or log() stands before step().
            self._logs_without_step += row is None
            return
        row.steps_told = len(row.stepped)
        for name, value in told.items():
            setattr(row, name, value if name == "clip_scale" else int(value))
        if loss is not None:
            self._buffer.put_loss(loss)
        self._agree(loss)

    def log_epoch(self, *, epoch: int, **figures: float | None) -> None:
        """Add a row to the table ``epochs``, for the state after the updates made so far.

        Args:
            epoch: counted from 0.
            figures: columns of the table: train_loss, test_acc1, seconds, ...

        Raises:
            UserError: the table has no such column.
        """
        self._last_epoch = self.step
        if self.journal is not None:
            told = {name: None if value is None else scalar(name, value) for name, value in figures.items()}
            self.journal.append_epoch({"step": self.step, "epoch": epoch, "phase": self.phase, **told})

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Leave what happens inside (evaluation, checkpoints) out of step_seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._clock.leave_out(time.perf_counter() - start)

    def begin_phase(
        self,
        phase: str,
        model: nn.Module | None,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        probes: Sequence[Probe] = (),
    ) -> None:
        """Go on with another model and optimizer in the same trace; steps run on. Every rank calls it.

        Args:
            phase: its name: train, pretrain or linear.
            model: as for `record`.
            optimizer: likewise.
            probes: likewise.
        """
        self.flush()
        self._detach()
        self._model = model
        self._optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self._curvature = list(probes) if self._probing else []
        self._rates = LastRates({})
        self.phase = phase
        self._lay_out()
        self._attach()

    def request_stop(self) -> None:
        """Ask all ranks to stop in the same step: `stop_agreed` becomes true on each. Any rank's wish counts.

        It only sets a flag, so that a signal handler may call it.
        """
        self._stop_wish = True

    def request_checkpoint(self) -> None:
        """Ask all ranks to checkpoint in the same step: `checkpoint_agreed` becomes true. Rank 0's wish counts."""
        self._checkpoint_wish = True

    def agree_to_stop(self) -> bool:
        """Learn of `request_stop` between two steps, after an evaluation, say. Every rank calls it."""
        self.stop_agreed = self.stop_agreed or self._ranks.any(self._stop_wish)
        return self.stop_agreed

    def flush(self) -> None:
        """Write all rows. Every rank calls it, in the same step."""
        self._close_row()
        self._cross()
        self._flush_wish = False
        if self.journal is not None:
            note_parameters(self.manifest, self.phase, self._model, self._optimizers)
            self.journal.flush(self._written)

    def state_dict(self) -> dict[str, Any]:
        """What `record` needs to continue (``resume=``); flushes first. Every rank calls it."""
        self.flush()
        if self.journal is not None:
            self.journal.end_parts_at(self.step)
        self._checkpoint_wish = self.checkpoint_agreed = False
        return {
            "step": self.step,
            "last_epoch": self._last_epoch,
            "samples": self._samples,
            "phase": self.phase,
            "rates": self.last_rates(),
            "probes": [probe.state_dict() for probe in self._curvature],
        }

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._rates.read(self._layout, self._optimizers)

    # Attaching and letting go.

    def __enter__(self) -> Self:
        self._lay_out()
        failure: Exception | None = None
        if self._ranks.rank == 0:
            try:
                self._open_journal()
            except Exception as error:
                failure = error
        if self._ranks.enter(failure is not None):
            raise failure or RunDirectoryError(f"rank 0 can't record into {self.path}")
        self._attach()
        return self

    def _attach(self) -> None:
        for index, optimizer in enumerate(self._optimizers):
            self._handles += attach(optimizer, partial(self._on_before, index), partial(self._on_after, index))
        self._clock = StepClock()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detach()
        if self._logs_without_step and not self.step:
            warnings.warn(
                "rec.log() was called, but no step of the optimizer was seen: record the optimizer whose step() is "
                "called (of a wrapper the inner one), and call rec.log() after it",
                stacklevel=2,
            )
        status = "failed" if kind is not None and issubclass(kind, Exception) else "interrupted"
        try:
            if kind is None:
                self.flush()
                status = "diverged" if self.diverged else "interrupted" if self.interrupted else "completed"
            else:
                self._salvage()
        except BaseException as failure:
            status, error = "failed", failure
            raise
        finally:
            self._finish(status, error)

    def _finish(self, status: str, error: BaseException | None) -> None:
        """Note how it ended; where even that can't be written, the error that is on its way stands."""
        if self.journal is None:
            return
        try:
            self.journal.finish(status, error if status == "failed" else None)
        except StorageError:
            if error is None:
                raise

    def _open_journal(self) -> None:
        step = 0
        if self._resume is None:
            self.journal = Journal.create(self.path, self.manifest)
        else:
            step = self._resume["step"]
            told = (-1 if self._last_epoch is None else self._last_epoch) + 1 if "last_epoch" in self._resume else None
            self.journal = Journal.resume(self.path, self.manifest, step, told)
        world_size = self._ranks.world_size
        self.manifest.world_size = self.manifest.world_size or world_size
        note_parameters(self.manifest, self.phase, self._model, self._optimizers)
        threads = torch.get_num_threads()
        try:
            self.journal.begin_segment(step, device=str(self._device), threads=threads, world_size=world_size)
        except BaseException:
            self.journal.abandon() if self._resume is None else self.journal.release()
            self.journal = None
            raise

    def _salvage(self) -> None:
        """Write what this rank has without the others, which may be gone."""
        self._lonely = self._ranks.world_size > 1
        self._ranks = Agreement(self._device, self._ranks.rank)
        with contextlib.suppress(Exception):
            self.flush()

    def _lay_out(self) -> None:
        """Learn the optimizers' parameters: at the start, and when one has got more."""
        self._layout = Layout(self._model, self._optimizers, updates=self._detail == "full")
        self._buffer = StepBuffer(len(self._layout.names), self._device)
        self._is_laid_out = True

    # The hooks.

    def _on_before(self, index: int) -> None:
        start = time.perf_counter()
        with torch.no_grad():
            self._before(index)
        self._clock.probed(time.perf_counter() - start)

    def _on_after(self, index: int) -> None:
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
                self._layout.probes[index].before()
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
                reading, active = self._layout.probes[index].after()
                self._buffer.put(self._layout.offsets[index], reading, active)
        row.time = now()

    def _measures(self) -> bool:
        """Whether the layers of this step are recorded, and by this rank."""
        return self._open is not None and self._open.recorded and self._ranks.rank == 0

    def _begin_row(self) -> None:
        self._close_row()
        if not self._layout.is_current:
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
            if not probe.due(step) or (probe.has_budget and not self._ranks.from_first(probe.affordable())):
                continue
            before, columns = self._failures.found, dict[str, Any]()
            with self._failures.guard(type(probe).__name__, step):
                columns = probe.measure(step, self.phase, self._applied_rates(step) if step else None)
            if self._ranks.any(self._failures.found is not before):
                self._stop_probing()
                return
            if self.journal is not None and columns:
                self.journal.append("curvature", columns)

    def _stop_probing(self) -> None:
        """A probe has failed on some rank: nothing but what the loop tells is recorded from now on, on any."""
        self._curvature.clear()
        self._probing = self._measures_layers = False
        if self._ranks.rank == 0:
            self._failures.announce(self.manifest, self.step)

    def _applied_rates(self, step: int) -> Rates:
        return applied_rates(self._model, self._optimizers, scaled_lr=self.last_rates(), step=step - 1)

    def _close_row(self) -> None:
        if self._open is not None and not self._open.steps_told:
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
