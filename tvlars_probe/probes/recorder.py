"""The recorder: what a loop's owner calls. `tvlars_probe.probes.recording` does the work."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from tvlars_probe.displays.displayed import Displayed, Shown
from tvlars_probe.errors import StoppedOnFinding, UserError
from tvlars_probe.probes.events.signals import children_may_wait
from tvlars_probe.probes.opening import open_journal
from tvlars_probe.probes.readers.told import count, mean_loss, piece_told, scalar, step_figures
from tvlars_probe.probes.rows.clipping import clipped
from tvlars_probe.uncompiled import uncompiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.probes.failures import Probe
    from tvlars_probe.probes.recording import Recording
    from tvlars_probe.probes.session import Session
    from tvlars_probe.traces.journal import Journal
    from tvlars_probe.traces.manifest import Manifest


class Recorder(Displayed):
    """Records a training loop; made by `tvlars_probe.record`.

    Attributes:
        path: the run directory.
        manifest: what stands in run.json; saved with each flush.
        interrupted: set it before leaving early, and the run's status is interrupted instead of completed.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        session: Session,
        recording: Recording,
        *,
        resume: Mapping[str, Any] | None,
    ) -> None:
        self.path, self.manifest, self.interrupted = path, manifest, False
        self._resume, self._session, self._recording = resume, session, recording

    def _shown(self) -> Shown:
        ended = self.manifest.status if self._recording.rows.is_laid_out else "not entered yet"
        state = "recording" if self._session.is_recording else ended
        told = [finding.text for finding in self.findings]
        return Shown(head=str(self.path), answer=f"{state}, step {self.step}", lines=told[:10])

    @property
    def phase(self) -> str:
        """Name of the training phase, written into each row."""
        return self._recording.phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._recording.phase = name

    @property
    def diverged(self) -> bool:
        """Whether the last loss told was not finite (on accelerators: known after a flush)."""
        return self._recording.diverged

    @property
    def journal(self) -> Journal | None:
        """The run's journal on rank 0; None on other ranks."""
        return self._session.journal

    @property
    def step(self) -> int:
        """Number of updates so far: the next step's index. On accelerators, skipped ones count until a flush."""
        return self._recording.step

    @property
    def stop_agreed(self) -> bool:
        """Whether all ranks have learned that one of them called `request_stop`, or that a finding ends the run."""
        return self._recording.wishes.stop_agreed

    @property
    def checkpoint_agreed(self) -> bool:
        """Whether all ranks have learned of rank 0's `request_checkpoint`; false again after `state_dict`."""
        return self._recording.wishes.checkpoint_agreed

    def stop_by_flag(self) -> None:
        """Let a finding of ``stop_on`` set `stop_agreed` alone, without raising: for trainers, which read it."""
        self._recording.raises = False

    @property
    def ended_by_finding(self) -> bool:
        """Whether all ranks have learned that a finding of ``stop_on`` ends the run."""
        return self._recording.wishes.finding_agreed

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What rules have found since the recorder was entered, as far as it is written; on rank 0."""
        return tuple(self._recording.finder.found)

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._recording.rows.last_rates()

    @uncompiled
    def log(
        self,
        *,
        loss: Tensor | float | None = None,
        samples: int | None = None,
        tokens: Tensor | int | None = None,
        epoch: int | None = None,
        clip_scale: float | None = None,
    ) -> None:
        """Tell of the step just made. Every rank calls it once a step, after the last optimizer's ``step()``.

        Args:
            loss: mean loss of this rank's samples, or of its tokens where their number is told.
            samples: number of this rank's samples.
            tokens: number of this rank's tokens that the loss is a mean over; a tensor stays on its device until the
                next flush.
            epoch: index of the epoch, from 0.
            clip_scale: factor by which gradient clipping scaled the gradient, 1 where it didn't.

        Raises:
            UserError: a value is no number or no count, or nothing is being recorded.
            StoppedOnFinding: a rule of ``stop_on`` has found something; the ``with`` block ends, and takes it.
        """
        self._session.refuse_idle()
        loss = mean_loss(loss)
        if self._recording.rows.tell(
            loss, step_figures(samples=samples, tokens=tokens, epoch=epoch, clip_scale=clip_scale)
        ):
            self._recording.agree(loss)
        self._recording.end_on_finding()

    def note_piece(
        self,
        *,
        samples: int | None = None,
        tokens: Tensor | int | None = None,
        weight: Tensor | float | None = None,
    ) -> None:
        """Tell of a piece of the batch, with ``record(noise=True)``: once for each backward pass, before it or after.

        It is needed where pieces differ in size, or the size isn't the first dimension of what the model is given.

        Args:
            samples: number of samples of the piece whose mean loss (times a factor) is differentiated.
            tokens: in their place, number of tokens; a tensor stays on its device.
            weight: what the piece's gradient weighs in the step's, up to a common factor: its number of samples where
                the loss is a mean over the whole batch. By default all pieces weigh the same, as where each one's mean
                loss is divided by the number of pieces.

        Raises:
            UserError: neither number or both are given, a value is no number, or nothing is being recorded.
        """
        self._session.refuse_idle()
        self._recording.rows.pieces.tell(piece_told(samples=samples, tokens=tokens, weight=weight))

    def clip_grad_norm_(
        self,
        parameters: Tensor | Iterable[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """Clip gradients as `torch.nn.utils.clip_grad_norm_` does, and record their norm before and the factor.

        Call it in its place: after ``backward()`` (and ``scaler.unscale_(optimizer)``), before ``step()``. Where it is
        called for several sets of tensors, the columns ``grad_norm_before_clipping`` and ``clip_scale`` are those of
        all of them together. A norm of another type than 2 isn't recorded, the factor is.

        Args:
            parameters: whose gradients are clipped together.
            max_norm: the highest norm that they keep.
            norm_type: p of the norm.
            error_if_nonfinite: whether a norm that isn't finite raises RuntimeError.
            foreach: whether torch takes its multi-tensor kernels.

        Returns:
            the norm before clipping, as torch returns it.

        Raises:
            UserError: nothing is being recorded.
        """
        self._session.refuse_idle()
        tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        norm = clip_grad_norm_(tensors, max_norm, norm_type, error_if_nonfinite, foreach)
        self._recording.rows.note_clipping(clipped(tensors, norm, max_norm, norm_type))
        return norm

    def read_norm_before_clipping(self, parameters: Iterable[Tensor], *, by_value: bool = False) -> None:
        """Read the norm of gradients that somebody else, such as a trainer, clips before the next ``step()``.

        Their norm is read once more before the update: the quotient is ``clip_scale``.

        Args:
            parameters: whose gradients are clipped together.
            by_value: whether each element is clipped for itself: then there is no common factor.

        Raises:
            UserError: nothing is being recorded.
        """
        self._session.refuse_idle()
        with torch.no_grad():
            self._recording.rows.read_before_clipping(list(parameters), by_value=by_value)

    def note_norm_before_clipping(self, norm: float, max_norm: float) -> None:
        """Tell the norm that gradients had before somebody else clipped them for the update just made.

        Args:
            norm: ‖g‖₂ before clipping.
            max_norm: the highest norm that they keep.

        Raises:
            UserError: a value is no number, or nothing is being recorded.
        """
        self._session.refuse_idle()
        self._recording.rows.note_clipped_before(scalar("norm", norm), scalar("max_norm", max_norm))

    def log_epoch(self, *, epoch: int, **figures: float | None) -> None:
        """Add a row to the table ``epochs``, for the state after the updates made so far.

        Args:
            epoch: index of the epoch, from 0.
            figures: columns of the table: train_loss, test_acc1, seconds, ...

        Raises:
            UserError: the table has no such column, a value is no number, or nothing is being recorded.
        """
        self._session.refuse_idle()
        if "step" in figures:
            raise UserError("log_epoch() describes the state after the updates made so far: step isn't told")
        number = count("epoch", epoch)
        self._recording.last_epoch = self.step
        if self.journal is not None:
            told = {name: None if value is None else scalar(name, value) for name, value in figures.items()}
            self.journal.append_epoch({"step": self.step, "epoch": number, "phase": self.phase, **told})

    def untimed(self) -> AbstractContextManager[None]:
        """Leave what happens inside (evaluation, checkpoints) out of step_seconds."""
        return self._recording.rows.clock.paused()

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
            phase: the new phase's name, as its rows have it.
            model: as for `record`.
            optimizer: as for `record`.
            probes: as for `record`.
        """
        self._session.refuse_idle()
        self._recording.begin_phase(phase, model, optimizer, probes)

    def request_stop(self) -> None:
        """Ask all ranks to stop in the same step (`stop_agreed`). Any rank may, also from a signal handler."""
        self._recording.wishes.stop = True

    def request_checkpoint(self) -> None:
        """Ask all ranks to checkpoint in the same step: `checkpoint_agreed` becomes true. Rank 0's wish counts."""
        self._recording.wishes.checkpoint = True

    def agree_to_stop(self) -> bool:
        """Learn of `request_stop` between two steps, for instance after an evaluation. Every rank calls it."""
        return self._recording.wishes.agree_to_stop()

    def flush(self) -> None:
        """Write all rows. Every rank calls it, in the same step."""
        self._session.refuse_idle()
        self._recording.flush()

    def state_dict(self) -> dict[str, Any]:
        """What `record` needs to continue (``resume=``); flushes first. Every rank calls it."""
        self._session.refuse_idle()
        return self._recording.state()

    def __enter__(self) -> Self:
        if self._recording.rows.is_laid_out:
            raise UserError("this recorder has been entered before: record() makes another")
        recording = self._recording
        opening = partial(open_journal, self.path, self.manifest, self._resume)
        facts = {
            "device": recording.device,
            "world_size": recording.ranks.world_size,
            "note": recording.note_parameters,
        }
        try:
            self._recording.attach()
            self._session.enter(
                partial(opening, **facts), self._recording.wishes.agreement, is_new=self._resume is None
            )
        except BaseException:
            self._recording.detach()
            raise
        self._recording.rows.clock.start()  # opening the journal is no part of the first step
        self._session.begin(self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool | None:  # of a plain bool a type checker would conclude that any exception may be taken
        is_stop = isinstance(error, StoppedOnFinding) and self._recording.wishes.finding_agreed
        if not self._session.is_forked:
            with children_may_wait():
                self._leave(*((None, None) if is_stop else (kind, error)))
        return is_stop

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._recording.detach()
        texts = self._recording.rows.misplaced_telling(self.step, in_order=kind is None)
        self.manifest.notes += texts
        if self._recording.wishes.finding_agreed:
            self.interrupted = True
            self.manifest.notes.append(self._recording.stopping)
            if self.journal is not None:
                logging.getLogger("tvlars_probe").warning("%s: %s", self.path, self._recording.stopping)
        self._session.leave(kind, error, write=self._write_all, salvage=self._recording.salvage, texts=texts)

    def _write_all(self) -> str:
        self._recording.finish()
        return "diverged" if self.diverged else "interrupted" if self.interrupted else "completed"
