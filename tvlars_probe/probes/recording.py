"""What happens at the events of a recorded loop: in which order the parts of a recording are called.

`tvlars_probe.probes.loop` shows the loop and its events. `StepHooks` reports them, `StepRows` fills a buffer's rows on
the device, `Probing` calls the probes, `Wishes` let the ranks do the same in the same step, and `Crossing` hands the
rows to the `Journal`, which a `Session` holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import StoppedOnFinding, UserError
from tvlars_probe.optimizers.given import optimizers_in
from tvlars_probe.probes.events.hooks import StepHooks
from tvlars_probe.probes.events.signals import children_may_wait
from tvlars_probe.probes.events.wishes import Wishes
from tvlars_probe.probes.probing import Probing
from tvlars_probe.probes.readers.layout import note_parameters, note_unknown
from tvlars_probe.probes.readers.rates import applied_rates
from tvlars_probe.probes.rows.crossing import Crossing, is_bad
from tvlars_probe.probes.rows.noise import noise_notes
from tvlars_probe.probes.rows.steps import StepRows
from tvlars_probe.wrappers import joins_uneven_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.budget import ProbeBudget
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.probes.rows.finding import Finder
    from tvlars_probe.probes.rows.reading_plan import ReadingPlan
    from tvlars_probe.probes.session import Session
    from tvlars_probe.traces.journal import Journal
    from tvlars_probe.traces.manifest import Manifest


class Recording:
    """The working of a `tvlars_probe.probes.recorder.Recorder`, which checks what its user gives and passes it on.

    Args:
        model: gives the parameters' names; None names them by their place in the optimizers.
        optimizers: whose steps are recorded.
        manifest: what stands in run.json; saved with each flush.
        session: holds the run's journal.
        plan: how much is read of each step.
        probes: what else is measured before updates.
        failures: applies the policy when a probe or the reading of norms raises.
        begun: a recorder's state, from which this one goes on.
        ranks: the ranks of the run.
        finder: looks at the rows for what is wrong.
        budget: what the probes may take together.

    Attributes:
        phase: name of the training phase.
        diverged: whether the last loss told was not finite (on accelerators: known after a flush).
        device: where the first parameter is.
        ranks: the ranks of the run.
        wishes: what the ranks have agreed to do.
        rows: the rows since the last flush.
        last_epoch: number of updates when the last epoch was logged; None before the first.
        finder: looks at the rows for what is wrong.
        raises: whether a finding that is to end the loop raises `StoppedOnFinding`.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Sequence[Optimizer],
        manifest: Manifest,
        session: Session,
        *,
        plan: ReadingPlan,
        probes: Sequence[Probe],
        failures: ProbeFailures,
        begun: Mapping[str, Any],
        ranks: Ranks,
        finder: Finder,
        budget: ProbeBudget,
    ) -> None:
        self.phase: str = begun["phase"]
        self.diverged = False
        self.last_epoch: int | None = begun.get("last_epoch")
        self._model, self._optimizers, self._manifest, self._session = model, optimizers, manifest, session
        self.device = next(p.device for o in optimizers for g in o.param_groups for p in g["params"])
        self.ranks, self.wishes = ranks, Wishes(ranks)
        self._failures = failures
        self.rows = StepRows(
            self.device,
            plan=plan,
            ranks=ranks,
            failures=failures,
            rates=begun["rates"],
        )
        self._hooks = StepHooks(self, self.rows.clock)
        finder.load(begun.get("findings") or {})
        self.finder, self.raises = finder, True
        self._crossing = Crossing(begun["step"], begun, finder, noise=plan.noise, lacking=begun.get("lacking") or {})
        budget.load_state_dict(begun.get("budget") or {})
        self._probing = Probing(probes, failures, budget)
        # Not strict: a resumed run may have other probes than its state.
        for probe, state in zip(probes, begun.get("probes", ()), strict=False):
            probe.load_state_dict(state)

    @property
    def _journal(self) -> Journal | None:
        """The run's journal on rank 0; None on other ranks."""
        return self._session.journal

    @property
    def step(self) -> int:
        """Number of updates so far: the next step's index. On accelerators, skipped ones count until a flush."""
        return self._crossing.written + len(self.rows)

    def attach(self) -> None:
        """Learn the optimizers' parameters, which are the same on all ranks, and watch their steps from now on."""
        with self.wishes.agreement.together() as meeting:
            # What may raise comes first, while nothing has been made: a warning may be an error.
            note_unknown(self._manifest, self._optimizers, warns=self.ranks.is_first)
            self.rows.lay_out(self._model, self._optimizers)
            meeting.fingerprint = self.rows.layout.fingerprint
            self._hooks.attach(self._optimizers)

    def detach(self) -> None:
        """Watch the optimizers' steps, and gradients, no more."""
        self._hooks.detach()
        self.rows.pieces.detach()

    def flush(self) -> None:
        """Write all rows. Every rank calls it, in the same step."""
        self._close_row()
        with children_may_wait():
            # From here until the journal has them, drained rows are nowhere else: an exception would lose them.
            self._cross()
            self.wishes.flush_agreed = False
            if self._journal is not None:
                self.note_parameters()
                self._journal.flush(self._crossing.written)

    def state(self) -> dict[str, Any]:
        """What `record` needs to continue: see `tvlars_probe.probes.state`. Flushes first. Every rank calls it."""
        self.flush()
        if self._journal is not None:
            self._journal.end_parts_at(self.step)
        self.wishes.forget_checkpoint()
        # Only rank 0's manifest is the run's: another rank's run_id names nothing.
        state = {
            "run_id": None if self._journal is None else self._manifest.run_id,
            "step": self.step,
            "last_epoch": self.last_epoch,
            **self._crossing.seen,
            "phase": self.phase,
            "rates": self.rows.last_rates(),
            "findings": self.finder.state(),
            "lacking": dict(self._crossing.lacking),
            "budget": self._probing.budget.state_dict(),
        }
        probes = self._probing.states(self.step, self.ranks)
        if probes is None:
            self._stop_probing()
        return {**state, "probes": probes or []}

    def begin_phase(
        self,
        phase: str,
        model: nn.Module | None,
        optimizer: Optimizer | Sequence[Optimizer],
        probes: Sequence[Probe],
    ) -> None:
        """Go on with another model and optimizer. Every rank calls it."""
        self.flush()  # first, while the rows' parameters and phase are the recording's
        with self.wishes.agreement.together():
            optimizers = optimizers_in(optimizer, model, ranks=self.ranks)
        self.detach()
        self._model, self._optimizers, self.phase = model, optimizers, phase
        self._probing.replace(probes)
        self.rows.begin_phase()
        self.finder.begin_phase()
        self.attach()

    # The events of the loop: see `tvlars_probe.probes.loop.LoopEvents`.
    def before_update(self, index: int) -> None:
        if self.ranks.world_size > 1 and joins_uneven_inputs(self._model):
            raise UserError(
                "under join() of DistributedDataParallel some ranks make more steps than others, which would wait for "
                "them in the recorder: leave out join(), or record() one rank with distributed=False"
            )
        if self.rows.begins_another(index):
            self._begin_row()
        self.rows.before(index)

    def after_update(self, index: int, started: float) -> None:
        if not self.rows.was_seen(index):
            # An optimizer that never called its closure: nothing was seen before its update.
            if self.rows.begins_another(index):
                self._begin_row()
            self.rows.note_rates(index)
        self.rows.after(index, started)
        if self._probing.awaits_update and self.rows.has_all_updates:
            with self.rows.probing_after_update():
                lr = self.rows.first_lr
                if not self._probing.measure_update(self.phase, lr, self.ranks, self._journal):
                    self._stop_probing()

    @property
    def stopping(self) -> str:
        """Why the loop ends, where a finding ends it. Rank 0 alone knows which one."""
        finding = self.finder.stops_on
        return "stopped on a finding (stop_on)" if finding is None else f"stopped on the finding of {finding} (stop_on)"

    def end_on_finding(self) -> None:
        """Leave the loop where all ranks have learned that a finding ends it.

        Raises:
            StoppedOnFinding: they have, and the loop isn't a trainer's.
        """
        if self.raises and self.wishes.finding_agreed:
            raise StoppedOnFinding(self.stopping)

    def _begin_row(self) -> None:
        self._close_row()
        self.end_on_finding()  # before the update, in a loop that doesn't call log()
        # Rows cross with the names of the layout that they were read by.
        if not self.rows.layout.is_current:
            with children_may_wait():
                self._cross()
            self.rows.lay_out(self._model, self._optimizers)
        elif self.wishes.flush_agreed or self.rows.buffer.full:
            self.flush()
        # Before the row is opened: until then `step` is the index of the update to come.
        if not self._probing.measure(self.step, self.phase, self._applied_rates, self.ranks, self._journal):
            self._stop_probing()
        self.rows.begin(self.step, self.phase)

    def _close_row(self) -> None:
        if self.rows.close():
            self.agree(None)  # the ranks agree in every step, told of or not

    def _applied_rates(self) -> Rates | None:
        scaled_lr = self.rows.last_rates()
        # Of DTensors they aren't computed: they may be one number per element.
        if not scaled_lr or self.rows.layout.is_sharded:
            return None
        return applied_rates(self._model, self._optimizers, scaled_lr=scaled_lr, step=self.step - 1)

    def agree(self, loss: Tensor | float | None) -> None:
        """Let the ranks learn of each other's wishes, once the loop has told of its step."""
        # A loss on an accelerator isn't read here, where the host would wait for it, but by the flush in `_cross`.
        on_host = not hasattr(loss, "device") or loss.device.type == "cpu"  # type: ignore[union-attr]
        decision = self.wishes.agree(
            self.step,
            flush=self._journal is not None and self._journal.due,
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
        self.rows.measures_layers = False
        if self.ranks.is_first:
            self._failures.announce(self._manifest, self.step)

    def _cross(self) -> None:
        """Take the rows to the host and hand them to the journal."""
        last = self._crossing.cross(self.rows.drain(), self.ranks, self.rows.layout, self._journal)
        if last is not None:
            self.diverged = is_bad(last)
        self.wishes.stop_on_finding = self.finder.stops_on is not None

    def note_parameters(self) -> None:
        """Put the parameters and their groups into the manifest."""
        note_parameters(self._manifest, self.phase, self._model, self._optimizers, self.rows.layout)

    def finish(self) -> None:
        """Write what is left, at the end of a loop that no exception ends. Every rank calls it."""
        self.flush()
        earlier = noise_notes(self._crossing.lacking, self._manifest.notes)
        self._manifest.notes[:] = self._probing.budget.notes(earlier)
        if self._probing.has_failed_here:  # after the ranks had agreed for the last time
            self._stop_probing()

    def salvage(self) -> None:
        """Write what this rank has without the others, which may be gone."""
        self._crossing.alone |= self.ranks.world_size > 1
        # A world of one rank has no collectives that would wait for the others.
        self.ranks = Ranks(self.device, self.ranks.rank)
        self.wishes.go_alone(self.ranks)
        self.flush()
