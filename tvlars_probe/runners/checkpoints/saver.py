"""When a run is checkpointed, what a checkpoint holds, and which of them are kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.traces.plain_types import fits, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.config import RecordConfig
    from tvlars_probe.runners.phases.loop import Training


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a phase has come.

    Attributes:
        epoch: the running one, from 0.
        batches: of it that are done: the sampler's position.
        seconds: of it that have passed.
        tally: what its batches scored so far, as `Tally.state_dict` gives it.
    """

    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0
    tally: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class Best:
    """The best checkpoint so far: its step, and what makes it so."""

    entry: dict[str, Any] | None = None

    def compare(self, step: int, metric: str, value: float | None) -> None:
        """Take note of an epoch's figure."""
        if value is not None and (self.entry is None or value > self.entry["value"]):
            self.entry = {"step": step, "metric": metric, "value": value}


@dataclass
class Saver:
    """Checkpoints of one phase.

    Attributes:
        config: how often, how many.
        phase_start: updates of the run before this phase; a checkpoint there is kept.
        best: the best checkpoint so far.
    """

    config: RecordConfig
    phase_start: int = 0
    best: Best = field(default_factory=Best)
    _last: float = field(default_factory=lambda: time.monotonic())

    def after_epoch(self, epoch: int, epochs: int) -> bool:
        """Whether the state at an epoch's end is saved."""
        every = self.config.checkpoint_every
        return epoch + 1 == epochs or bool(every and (epoch + 1) % every == 0)

    def wish(self, recorder: Recorder) -> None:
        """Ask for a checkpoint in the step that is being made, if enough minutes have passed."""
        minutes = self.config.checkpoint_minutes
        if minutes is not None and time.monotonic() - self._last >= 60 * minutes:
            recorder.request_checkpoint()

    def within_epoch(self, recorder: Recorder) -> bool:
        """Whether the state after the step just made is saved; the same on every rank."""
        steps = self.config.checkpoint_steps
        return recorder.checkpoint_agreed or (steps is not None and recorder.step % steps == 0)

    def save(self, training: Training, position: Position, recorder: Recorder) -> None:
        """Save the state after the updates made so far, and remove what isn't kept. Every rank calls it."""
        state = {
            "phase": training.phase,
            "epochs": position.epoch,
            "batches": position.batches,
            "seconds": position.seconds,
            "tally": position.tally,
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scheduler": training.scheduler.state_dict(),
            "recorder": recorder.state_dict(),
            "rng": checkpoints.rng_state(training.ranks),
            "best": self.best.entry,
            "config": training.config.as_dict(),
            "manifest": recorder.manifest.to_json(),
        }
        if recorder.journal is not None:
            with recorder.journal.writing():
                checkpoints.save(recorder.path, recorder.step, state)
                recorder.journal.boundaries = kept = self._kept(recorder)
                recorder.manifest.best = self.best.entry
                recorder.manifest.save(recorder.path)
                checkpoints.keep_only(recorder.path, kept)
        self._last = time.monotonic()

    def _kept(self, recorder: Recorder) -> list[int]:
        there = [*checkpoints.list_checkpoints(recorder.path)]
        latest = there[-self.config.keep_checkpoints :]  # 0: all
        best = [] if self.best.entry is None else [self.best.entry["step"]]
        return sorted({*latest, *best, recorder.step} | ({self.phase_start} - {0}))


def restore(training: Training, state: dict[str, Any], path: Path) -> Position:
    """Put a checkpoint's state into the parts of a phase; returns where the phase goes on.

    Raises:
        RunDirectoryError: it is another model's or optimizer's, or of another place in the run.
    """
    if state["phase"] != training.phase:
        checkpoints.refuse_for_this_run(path, [f"it is in the phase {state['phase']}, the run in {training.phase}"])
    checkpoints.refuse(
        path,
        contents.misplaced(
            state,
            first_step=training.first_step,
            steps_per_epoch=training.plan.steps_per_epoch,
            epochs=training.epochs,
        ),
    )
    checkpoints.restore_model(training.model, state, path)
    checkpoints.restore_optimizer(training.optimizer, state, path)
    checkpoints.refuse_for_this_run(path, _restore_schedule(training, state))
    try:
        checkpoints.restore_rng(state["rng"], training.ranks)
    except (TypeError, RuntimeError) as error:
        checkpoints.refuse_for_this_run(path, [f"its random generator's state isn't one: {error}"])
    training.saver.best.entry = state["best"]
    return Position(
        epoch=state["epochs"],
        batches=state.get("batches", 0),
        seconds=state.get("seconds", 0.0),
        tally=state.get("tally"),
    )


def _restore_schedule(training: Training, state: dict[str, Any]) -> Iterator[str]:
    """Put the schedule where it was; says what is wrong with that."""
    scheduler, made, saved = (
        training.scheduler,
        state["step"] - training.first_step,
        state["scheduler"].get("last_epoch"),
    )
    if not fits(saved, int) or saved != made:
        yield f"its schedule is in step {shown(saved)}, not {made}"
        return
    lrs = [group["lr"] for group in training.optimizer.param_groups]
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": made, "_step_count": made + 1, "_last_lr": lrs})
    for group, base in zip(training.optimizer.param_groups, scheduler.base_lrs, strict=True):
        lr, due = group["lr"], base * training.schedule.factor(made)
        if not math.isclose(lr, due, rel_tol=1e-6, abs_tol=0):
            yield f"its lr is {lr:g}, and the schedule's {due:g}"
        if group.get("num_updates", made) != made:
            yield f"its optimizer has made {group['num_updates']} updates of {made}"


def note_other_ranks(recorder: Recorder, state: Mapping[str, Any] | None, ranks: Ranks) -> None:
    """Note in the manifest that a run is continued on another number of ranks, or of threads."""
    if state is None or recorder.journal is None:
        return
    notes, step, before = recorder.manifest.notes, state["step"], len(state["rng"])
    if before != ranks.world_size:
        notes.append(
            f"continued at step {step} on {ranks.world_size} rank(s) instead of {before}: sums are in another order "
            f"from there on"
        )
    segments = recorder.manifest.segments[-2:]
    threads = [segment.get("threads") for segment in segments]
    if before == ranks.world_size and len({*threads}) > 1:
        notes.append(f"continued at step {step} with {threads[1]} thread(s) a rank instead of {threads[0]}")
