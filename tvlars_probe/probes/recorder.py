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

import atexit
import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tvlars_probe.errors import RunDirectoryError, StorageError, UserError
from tvlars_probe.probes import state
from tvlars_probe.probes.agreement import Agreement
from tvlars_probe.probes.failures import OnProbeError, ProbeFailures
from tvlars_probe.probes.known_optimizers import count, scalar
from tvlars_probe.probes.layout import LastRates, note_parameters
from tvlars_probe.probes.observer import Detail, StepObserver
from tvlars_probe.probes.signals import children_may_wait
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import new_run_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from tvlars_probe.probes.failures import Probe


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
        resume: a ``state_dict()`` of a recorder of this run: continue from there, later rows are set aside.
        distributed: with a `torch.distributed` process group, every rank calls ``record``, rank 0 writes and losses
            are averaged over ranks; False records this process alone.

    Raises:
        RunDirectoryError: on entering, if the folder holds something already or can't be written.
        UserError: a setting outside its range.
    """
    if detail not in get_args(Detail):
        raise UserError(f"unknown detail {detail!r} (known: {', '.join(get_args(Detail))})")
    if resume is not None:
        wrong = [*state.faults(resume)] if isinstance(resume, Mapping) else [f"it is {resume!r:.60}"]
        if wrong:
            raise UserError(f"resume= takes what rec.state_dict() gave: {'; '.join(wrong[:3])}")
    if every < 1:
        raise UserError(f"every={every}: the layers can be recorded in every step (1) or fewer (2, 3, ...)")
    optimizers: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
        given = ", ".join(type(one).__name__ for one in optimizers) or "none"
        raise UserError(
            f"record() needs a torch.optim.Optimizer or a list of them, got {given} (give a wrapper's inner optimizer)"
        )
    path = Path(os.path.expanduser(path))  # noqa: PTH111 (a user unknown is no error)
    facts = manifest or Manifest(run_id=new_run_id(path))
    facts.config = dict(config) if config is not None else facts.config
    facts.total_steps = total_steps if total_steps is not None else facts.total_steps
    return Recorder(
        model,
        optimizers,
        path,
        facts,
        detail=detail,
        every=every,
        probes=probes,
        failures=ProbeFailures(on_probe_error),
        resume=resume,
        distributed=distributed,
    )


class Recorder(StepObserver):
    """Records a training loop; made by `record`. What it knows stands on `StepObserver`."""

    # What the loop calls.

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
        self._refuse_idle()
        if isinstance(loss, Tensor) and (loss.numel() != 1 or loss.is_complex()):
            what = f"{'complex ' if loss.is_complex() else ''}tensor of {tuple(loss.shape)}"
            raise UserError(f"rec.log(loss=...) takes the mean loss, one number; got a {what}")
        loss = loss if loss is None or isinstance(loss, Tensor) else scalar("loss", loss)
        told: dict[str, Any] = {"samples": count("samples", samples), "epoch": count("epoch", epoch)}
        told["clip_scale"] = None if clip_scale is None else scalar("clip_scale", clip_scale)
        told = {name: value for name, value in told.items() if value is not None}
        row = self._open
        if row is None or row.steps_told == len(row.stepped):
            # No update since the last call: a gradient scaler skipped it, or log() stands before step().
            self._logs_without_step += row is None
            return
        row.steps_told = len(row.stepped)
        for name, value in told.items():
            setattr(row, name, value)
        if loss is not None:
            self._buffer.put_loss(loss)
        self._agree(loss)

    def log_epoch(self, *, epoch: int, **figures: float | None) -> None:
        """Add a row to the table ``epochs``, for the state after the updates made so far.

        Args:
            epoch: counted from 0.
            figures: columns of the table: train_loss, test_acc1, seconds, ...

        Raises:
            UserError: the table has no such column, or a value is no number.
        """
        self._refuse_idle()
        if "step" in figures:
            raise UserError("log_epoch() describes the state after the updates made so far: step isn't told")
        number = count("epoch", epoch)
        self._last_epoch = self.step
        if self.journal is not None:
            told = {name: None if value is None else scalar(name, value) for name, value in figures.items()}
            self.journal.append_epoch({"step": self.step, "epoch": number, "phase": self.phase, **told})

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
        self._refuse_idle()
        self._close_row()
        with children_may_wait():
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
            "run_id": None if self.journal is None else self.manifest.run_id,
            "step": self.step,
            "last_epoch": self._last_epoch,
            "samples": self._samples,
            "phase": self.phase,
            "rates": self.last_rates(),
            "probes": self._probes_state(),
        }

    def _probes_state(self) -> list[dict[str, Any]]:
        before, states = self._failures.found, []
        for probe in self._curvature:
            with self._failures.guard(f"{type(probe).__name__}.state_dict", self.step):
                states.append(probe.state_dict())
        if self._curvature and self._ranks.any(self._failures.found is not before):
            self._stop_probing()
            return []
        return states

    # Attaching and letting go.

    def _refuse_idle(self) -> None:
        """Refuse to write where this recorder doesn't record: before and after its block, and in a forked child."""
        if os.getpid() != self._pid:
            raise UserError("this process was forked from the one that records the run: record() another one here")
        if not self._is_recording:
            raise UserError("the recorder isn't recording: use it as 'with tvlars_probe.record(...) as rec:'")

    def __enter__(self) -> Self:
        if self._is_laid_out:
            raise UserError("this recorder has been entered before: record() makes another")
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
        self._is_recording = True
        atexit.register(self._leave_at_exit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return  # a forked child leaves the block: the run is its parent's
        with children_may_wait():
            self._leave(kind, error)

    def _leave_at_exit(self) -> None:
        """Write what a recorder holds that was never left, when the interpreter ends."""
        if os.getpid() == self._pid:
            warnings.warn(f"the recorder of {self.path} was never left: use it as a context manager", stacklevel=1)
            self._leave(SystemExit, None)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        atexit.unregister(self._leave_at_exit)
        self._detach()
        if self._logs_without_step == 1 and self.step > 1 and self._open is not None and not self._open.steps_told:
            warnings.warn(
                "rec.log() was called before the first optimizer.step(), and not after the last: each call told of the "
                "step before. Call it after step()",
                stacklevel=3,
            )
        if self._logs_without_step and not self.step:
            warnings.warn(
                "rec.log() was called, but no step of the optimizer was seen: record the optimizer whose step() is "
                "called (of a wrapper the inner one), and call rec.log() after it",
                stacklevel=3,
            )
        status = "failed" if kind is not None and issubclass(kind, Exception) else "interrupted"
        try:
            if kind is None:
                self.flush()
                status = "diverged" if self.diverged else "interrupted" if self.interrupted else "completed"
            else:
                self._salvage()
        except BaseException as failure:
            status, error = "failed" if isinstance(failure, Exception) else "interrupted", failure
            raise
        finally:
            self._is_recording = False
            self._finish(status, error)

    def _finish(self, status: str, error: BaseException | None) -> None:
        """Note how it ended; where even that can't be written, the error that is on its way stands."""
        if self.journal is None:
            return
        try:
            with children_may_wait():
                self.journal.finish(status, error if status == "failed" else None)
        except StorageError:
            if error is None:
                raise

    def _open_journal(self) -> None:
        step = 0
        if self._resume is None:
            self.journal = Journal.create(self.path, self.manifest)
        else:
            step, run_id = self._resume["step"], self._resume.get("run_id")
            if run_id is not None and run_id != (there := Manifest.load(self.path).run_id):
                raise RunDirectoryError(
                    f"{self.path} holds the run {there}, and resume= is a state of the run {run_id}"
                )
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
        for _ in range(2):  # what a data loader's signal handler has to say may come in the middle of the first
            with contextlib.suppress(Exception):
                self.flush()
                return
