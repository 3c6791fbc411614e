"""What a sweep says while it trains: which run begins, how each ended, and when all will be done."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.text import say
from tvlars_probe.runners.sweeps.trials import FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.runners.sweeps.trials import Outcome, Trial

_MOST_NAMED = 4
"""So many runs are named that are waited for."""


class SweepProgress:
    """Says how far a sweep is.

    Args:
        total: number of its runs.
        jobs: number of runs that are trained at once.
        has_bar: whether a terminal shows a bar for the run that is trained: then no line says that it begins.
        seconds: a clock of any origin.
        now: the time of day.
    """

    def __init__(
        self,
        total: int,
        *,
        jobs: int = 1,
        has_bar: bool = False,
        seconds: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._total, self._jobs, self._has_bar, self._seconds, self._now = total, jobs, has_bar, seconds, now
        self._begun: dict[str, float] = {}
        self._lengths: list[float] = []
        self._over = self._finished = 0

    def begins(self, trial: Trial) -> str:
        """Say that a run begins, and return the line that stands above its bar."""
        number = min(self._over + len(self._begun) + 1, self._total)
        line = f"{number}/{self._total}  {point_of(trial)}{self._until()}"
        self._begun[str(trial.path)] = self._seconds()
        if not self._has_bar:
            self._say(f"Training {line}")
        return line

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Say how a run ended."""
        self._over += 1
        self._finished += outcome.status in FINISHED
        begun = self._begun.pop(str(trial.path), None)
        # A run that failed says nothing of how long the others take.
        if begun is not None and outcome.status in FINISHED:
            self._lengths.append(self._seconds() - begun)
        accuracy = "" if outcome.best_test_acc1 is None else f"  best test acc {outcome.best_test_acc1:.2f} %"
        error = "" if outcome.error is None else f"  {' '.join(outcome.error.split())}"
        self._say(f"{self._over}/{self._total}  {point_of(trial)}  {outcome.status}{accuracy}{error}")

    def waits(self, trials: Sequence[Trial]) -> None:
        """Say that only runs are left that other processes train."""
        for trial in trials:
            self._begun.pop(str(trial.path), None)  # another process took over what this one had begun
        named = [point_of(trial) for trial in trials[:_MOST_NAMED]]
        more = f", and {len(trials) - len(named)} more" if len(trials) > len(named) else ""
        self._say(f"Waiting for {counted(len(trials), 'run')} that other processes train: {', '.join(named)}{more}")

    def advice(self) -> str:
        """What is kept of a sweep that is interrupted, and how it goes on."""
        done = f"{self._finished} of {counted(self._total, 'run')} finished"
        return f"Interrupted: {done}; the same command goes on, with what was cut off from its last checkpoint"

    def _until(self) -> str:
        """When all will be done, as the mean of the runs that this sweep has trained tells; empty before the first."""
        if not self._lengths:
            return ""
        mean = sum(self._lengths) / len(self._lengths)
        now = self._now()
        end = now + timedelta(seconds=(self._total - self._over) / self._jobs * mean)
        return f"  (all done at about {end:{'%H:%M' if end.date() == now.date() else '%b %d %H:%M'}})"

    def _say(self, line: str) -> None:
        say(line)
        if sys.stdout is not None:
            sys.stdout.flush()  # in a file, too, it is there while the next run trains


def point_of(trial: Trial) -> str:
    """A run by its values on the axes."""
    return " ".join(f"{name}={value}" for name, value in trial.point.items()) or str(trial.path)
