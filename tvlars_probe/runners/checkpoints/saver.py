"""When a run is checkpointed, and which checkpoints are kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.configuration.recording import RecordConfig


@dataclass(kw_only=True)
class BestSoFar:
    """The best checkpoint so far.

    Attributes:
        entry: its step, with the metric and the value that make it the best; None before there is one.
    """

    entry: dict[str, Any] | None = None

    def compare(self, step: int, metric: str, value: float | None) -> None:
        """Take the checkpoint after ``step`` updates for the best if its ``value`` exceeds the best one's."""
        if value is not None and (self.entry is None or value > self.entry["value"]):
            self.entry = {"step": step, "metric": metric, "value": value}


@dataclass
class Saver:
    """Decides when one phase is checkpointed and which checkpoints are kept, and saves them.

    Attributes:
        config: how often to save, and how many to keep.
        phase_start: updates of the run before this phase; the checkpoint there is kept.
        best: the best checkpoint so far.
    """

    config: RecordConfig
    phase_start: int = 0
    best: BestSoFar = field(default_factory=BestSoFar)
    _last: float = field(default_factory=lambda: time.monotonic())

    def after_epoch(self, epoch: int, epochs: int) -> bool:
        """Whether the state at the end of ``epoch``, counted from 0 of ``epochs``, is saved; always after the last."""
        every = self.config.checkpoint_every
        return epoch + 1 == epochs or bool(every and (epoch + 1) % every == 0)

    def wish(self, recorder: Recorder) -> None:
        """Ask for a checkpoint after the step that is being made, if enough minutes have passed.

        Clocks differ between ranks, so this only asks: rank 0's wish counts, and all ranks learn of it together.
        """
        minutes = self.config.checkpoint_minutes
        if minutes is not None and time.monotonic() - self._last >= 60 * minutes:
            recorder.request_checkpoint()

    def within_epoch(self, recorder: Recorder) -> bool:
        """Whether the state after the step just made is saved. Every rank gets the same answer."""
        steps = self.config.checkpoint_steps
        return recorder.checkpoint_agreed or (steps is not None and recorder.step % steps == 0)

    def save(self, state: Mapping[str, Any], recorder: Recorder) -> None:
        """Save the state after the updates made so far, and remove what isn't kept. Every rank calls it.

        Args:
            state: what `tvlars_probe.runners.phases.loop.Training.state_dict` gives.
            recorder: the run's recorder; its own state is saved beside ``state``.
        """
        # Flushes first: every row up to here is on disk before a checkpoint exists from which a run goes on.
        recorded = recorder.state_dict()
        if recorder.journal is not None:
            whole = {**state, "recorder": recorded, "best": self.best.entry, "manifest": recorder.manifest.to_json()}
            # A process killed between these lines leaves a checkpoint too many, never one too few.
            with recorder.journal.writing():
                checkpoints.save(recorder.path, recorder.step, whole)
                recorder.journal.boundaries = kept = self._kept(recorder)
                recorder.manifest.best = self.best.entry
                recorder.manifest.save(recorder.path)
                checkpoints.keep_only(recorder.path, kept)
        self._last = time.monotonic()

    def _kept(self, recorder: Recorder) -> list[int]:
        """Steps of the checkpoints to keep: the latest, the best, the one just written, the end of the phase before."""
        there = [*checkpoints.list_checkpoints(recorder.path)]
        latest = there[-self.config.keep_checkpoints :]  # there[-0:] is all of them
        best = [] if self.best.entry is None else [self.best.entry["step"]]
        return sorted({*latest, *best, recorder.step} | ({self.phase_start} - {0}))
