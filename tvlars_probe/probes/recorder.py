"""The recorder: puts together what watches a loop's steps, what reads them, and what writes them down.

`tvlars_probe.probes.loop` shows the loop and its events. `StepHooks` reports them, `StepRows` fills a buffer's rows on
the device, `Probing` calls the probes, `Wishes` let the ranks do the same in the same step, and `Crossing` hands the
rows to the `Journal`, which a `Session` holds. The recorder only decides in which order these are called.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.given import optimizers_in
from tvlars_probe.probes.events.hooks import StepHooks
from tvlars_probe.probes.events.signals import children_may_wait
from tvlars_probe.probes.events.wishes import Wishes
from tvlars_probe.probes.opening import open_journal
from tvlars_probe.probes.probing import Probing
from tvlars_probe.probes.readers.layout import note_parameters, note_unknown
from tvlars_probe.probes.readers.rates import applied_rates
from tvlars_probe.probes.readers.told import count, mean_loss, scalar, step_figures
from tvlars_probe.probes.rows.crossing import Crossing, is_bad
from tvlars_probe.probes.rows.steps import Detail, StepRows
from tvlars_probe.probes.session import Session
from tvlars_probe.traces.schema import ONLY_PHASE
from tvlars_probe.uncompiled import uncompiled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.traces.journal import Journal
    from tvlars_probe.traces.manifest import Manifest


class Recorder:
    """Records a training loop; made by `tvlars_probe.record`.

    Attributes:
        path: the run directory.
        phase: name of the training phase, written into each row.
        manifest: what stands in run.json; saved with each flush.
        diverged: whether the last loss told was not finite (on accelerators: known after a flush).
        interrupted: set it before leaving early, and the run's status is interrupted instead of completed.
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
        ranks: Ranks,
    ) -> None:
        begun = resume or {"step": 0, "samples": 0, "phase": ONLY_PHASE, "rates": {}}
        self.path, self.manifest, self.phase = path, manifest, begun["phase"]
        self.diverged = self.interrupted = False
        self._model, self._optimizers, self._resume = model, optimizers, resume
        self._device = next(p.device for o in optimizers for g in o.param_groups for p in g["params"])
        self._ranks, self._wishes = ranks, Wishes(ranks)
        self._failures, self._session = failures, Session(path)
        self._rows = StepRows(
            self._device,
            detail=detail,
            every=every,
            reads=self._ranks.is_first,
            failures=failures,
            rates=begun["rates"],
        )
        self._hooks = StepHooks(self, self._rows.clock)
        self._crossing = Crossing(begun["step"], begun["samples"])
        self._probing = Probing(probes, failures)
        # Not strict: a resumed run may have other probes than its state.
        for probe, state in zip(probes, begun.get("probes", ()), strict=False):
            probe.load_state_dict(state)
        self._last_epoch: int | None = begun.get("last_epoch")

    @property
    def journal(self) -> Journal | None:
        """The run's journal on rank 0; None on other ranks."""
        return self._session.journal

    @property
    def step(self) -> int:
        """Number of updates so far: the next step's index. On accelerators, skipped ones count until a flush."""
        return self._crossing.written + len(self._rows)

    @property
    def stop_agreed(self) -> bool:
        """Whether all ranks have learned that one of them called `request_stop`."""
        return self._wishes.stop_agreed

    @property
    def checkpoint_agreed(self) -> bool:
        """Whether all ranks have learned of rank 0's `request_checkpoint`; false again after `state_dict`."""
        return self._wishes.checkpoint_agreed

    def last_rates(self) -> dict[str, float]:
        """lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known."""
        return self._rows.last_rates()

    @uncompiled
    def log(
        self,
        *,
        loss: Tensor | float | None = None,
        samples: int | None = None,
        epoch: int | None = None,
        clip_scale: float | None = None,
    ) -> None:
        """Tell of the step just made. Every rank calls it once a step, after the last optimizer's ``step()``.

        Args:
            loss: mean loss of this rank's samples.
            samples: number of this rank's samples.
            epoch: index of the epoch, from 0.
            clip_scale: factor by which gradient clipping scaled the gradient, 1 where it didn't.

        Raises:
            UserError: a value is no number or no count, or nothing is being recorded.
        """
        self._session.refuse_idle()
        loss = mean_loss(loss)
        if self._rows.tell(loss, step_figures(samples=samples, epoch=epoch, clip_scale=clip_scale)):
            self._agree(loss)

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
        self._last_epoch = self.step
        if self.journal is not None:
            told = {name: None if value is None else scalar(name, value) for name, value in figures.items()}
            self.journal.append_epoch({"step": self.step, "epoch": number, "phase": self.phase, **told})

    def untimed(self) -> AbstractContextManager[None]:
        """Leave what happens inside (evaluation, checkpoints) out of step_seconds."""
        return self._rows.clock.paused()

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
        self.flush()  # first, while the rows' parameters and phase are the recorder's
        with self._wishes.agreement.together():
            optimizers = optimizers_in(optimizer, model)
        self._hooks.detach()
        self._model, self._optimizers, self.phase = model, optimizers, phase
        self._probing.replace(probes)
        self._rows.begin_phase()
        self._attach()

    def _attach(self) -> None:
        """Learn the optimizers' parameters, which are the same on all ranks, and watch their steps from now on."""
        with self._wishes.agreement.together() as meeting:
            # What may raise comes first, while nothing has been made: a warning may be an error.
            note_unknown(self.manifest, self._optimizers, warns=self._ranks.is_first)
            self._rows.lay_out(self._model, self._optimizers)
            meeting.fingerprint = self._rows.layout.fingerprint
            self._hooks.attach(self._optimizers)

    def request_stop(self) -> None:
        """Ask all ranks to stop in the same step (`stop_agreed`). Any rank may, also from a signal handler."""
        self._wishes.stop = True

    def request_checkpoint(self) -> None:
        """Ask all ranks to checkpoint in the same step: `checkpoint_agreed` becomes true. Rank 0's wish counts."""
        self._wishes.checkpoint = True

    def agree_to_stop(self) -> bool:
        """Learn of `request_stop` between two steps, for instance after an evaluation. Every rank calls it."""
        return self._wishes.agree_to_stop()

    def flush(self) -> None:
        """Write all rows. Every rank calls it, in the same step."""
        self._session.refuse_idle()
        self._close_row()
        with children_may_wait():
            # From here until the journal has them, drained rows are nowhere else: an exception would lose them.
            self._cross()
            self._wishes.flush_agreed = False
            if self.journal is not None:
                self._note_parameters()
                self.journal.flush(self._crossing.written)

    def state_dict(self) -> dict[str, Any]:
        """What `record` needs to continue (``resume=``); flushes first. Every rank calls it."""
        self.flush()
        if self.journal is not None:
            self.journal.end_parts_at(self.step)
        self._wishes.forget_checkpoint()
        # Only rank 0's manifest is the run's: another rank's run_id names nothing.
        state = {
            "run_id": None if self.journal is None else self.manifest.run_id,
            "step": self.step,
            "last_epoch": self._last_epoch,
            "samples": self._crossing.samples,
            "phase": self.phase,
            "rates": self.last_rates(),
        }
        probes = self._probing.states(self.step, self._ranks)
        if probes is None:
            self._stop_probing()
        return {**state, "probes": probes or []}

    # The events of the loop: see `tvlars_probe.probes.loop.LoopEvents`.
    def before_update(self, index: int) -> None:
        if self._rows.begins_another(index):
            self._begin_row()
        self._rows.before(index)

    def after_update(self, index: int, started: float) -> None:
        if not self._rows.was_seen(index):
            # An optimizer that never called its closure: nothing was seen before its update.
            if self._rows.begins_another(index):
                self._begin_row()
            self._rows.note_rates(index)
        self._rows.after(index, started)

    def _begin_row(self) -> None:
        self._close_row()
        # Rows cross with the names of the layout that they were read by.
        if not self._rows.layout.is_current:
            with children_may_wait():
                self._cross()
            self._rows.lay_out(self._model, self._optimizers)
        elif self._wishes.flush_agreed or self._rows.buffer.full:
            self.flush()
        # Before the row is opened: until then `step` is the index of the update to come.
        if not self._probing.measure(self.step, self.phase, self._applied_rates, self._ranks, self.journal):
            self._stop_probing()
        self._rows.begin(self.step, self.phase)

    def _close_row(self) -> None:
        if self._rows.close():
            self._agree(None)  # the ranks agree in every step, told of or not

    def _applied_rates(self) -> Rates | None:
        scaled_lr = self.last_rates()
        if not scaled_lr:
            return None
        return applied_rates(self._model, self._optimizers, scaled_lr=scaled_lr, step=self.step - 1)

    def _agree(self, loss: Tensor | float | None) -> None:
        """Let the ranks learn of each other's wishes, once the loop has told of its step."""
        # A loss on an accelerator isn't read here, where the host would wait for it, but by the flush in `_cross`.
        on_host = not hasattr(loss, "device") or loss.device.type == "cpu"  # type: ignore[union-attr]
        decision = self._wishes.agree(
            self.step,
            flush=self.journal is not None and self.journal.due,
            bad_loss=on_host and is_bad(None if loss is None else float(loss)),
            probe_failed=self._probing.has_failed_here,
        )
        if decision.probe_failed:
            self._stop_probing()
        if on_host and (loss is not None or decision.bad_loss):
            self.diverged = decision.bad_loss

    def _stop_probing(self) -> None:
        """Record only what the loop tells from now on, on all ranks: a probe has failed on one of them."""
        self._probing.stop()
        self._rows.measures_layers = False
        if self._ranks.is_first:
            self._failures.announce(self.manifest, self.step)

    def _cross(self) -> None:
        """Take the rows to the host and hand them to the journal."""
        last = self._crossing.cross(self._rows.drain(), self._ranks, self._rows.layout, self.journal)
        if last is not None:
            self.diverged = is_bad(last)

    def _note_parameters(self) -> None:
        note_parameters(self.manifest, self.phase, self._model, self._optimizers)

    def __enter__(self) -> Self:
        if self._rows.is_laid_out:
            raise UserError("this recorder has been entered before: record() makes another")
        opening = partial(open_journal, self.path, self.manifest, self._resume)
        facts = {"device": self._device, "world_size": self._ranks.world_size, "note": self._note_parameters}
        try:
            self._attach()
            self._session.enter(partial(opening, **facts), self._wishes.agreement, is_new=self._resume is None)
        except BaseException:
            self._hooks.detach()
            raise
        self._rows.clock.start()  # opening the journal is no part of the first step
        self._session.begin(self._leave)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._session.is_forked:
            with children_may_wait():
                self._leave(kind, error)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._hooks.detach()
        texts = self._rows.misplaced_telling(self.step, in_order=kind is None)
        self.manifest.notes += texts
        self._session.leave(kind, error, write=self._write_all, salvage=self._salvage, texts=texts)

    def _write_all(self) -> str:
        self.flush()
        if self._probing.has_failed_here:  # after the ranks had agreed for the last time
            self._stop_probing()
        return "diverged" if self.diverged else "interrupted" if self.interrupted else "completed"

    def _salvage(self) -> None:
        """Write what this rank has without the others, which may be gone."""
        self._crossing.alone |= self._ranks.world_size > 1
        # A world of one rank has no collectives that would wait for the others.
        self._ranks = Ranks(self._device, self._ranks.rank)
        self._wishes.go_alone(self._ranks)
        self.flush()
