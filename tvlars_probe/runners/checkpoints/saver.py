"""When a run is checkpointed, and which checkpoints are kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.config import RecordConfig


@dataclass(kw_only=True)
class BestSoFar:
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
    best: BestSoFar = field(default_factory=BestSoFar)
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

    def save(self, state: Mapping[str, Any], recorder: Recorder) -> None:
        """Save a state after the updates made so far, and remove what isn't kept. Every rank calls it.

        Args:
            state: of the training, as `tvlars_probe.runners.phases.loop.Training.state_dict` gives it.
            recorder: of the run; its own state is saved beside it.
        """
        recorded = recorder.state_dict()
        if recorder.journal is not None:
            whole = {**state, "recorder": recorded, "best": self.best.entry, "manifest": recorder.manifest.to_json()}
            with recorder.journal.writing():
                checkpoints.save(recorder.path, recorder.step, whole)
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
