"""The agenda of a sweep: which trials are over, which it may take, and which other processes hold.

Sweeps share nothing but folders. While a sweep has a trial in work, or in slurm's queue, it holds a lock that other
sweeps see: its claim. The system frees it when the sweep dies. What then trains on, or was started by ``train``, holds
the run directory.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tvlars_probe.errors import RunHeldError
from tvlars_probe.runners.sweeps.trials import FINISHED, RUNNING, Outcome, Trial, outcome
from tvlars_probe.traces.run_directory import RunDirectory, is_held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CLAIMS_FOLDER = ".claims"
"""Folder of the claims, below the sweep's: its name begins with a dot, so no search for runs looks into it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two looks at what other processes train; each pause is twice as long as the one before."""


class Agenda:
    """The trials of a sweep on their way.

    Args:
        trials: all of the sweep.
        folder: the sweep's folder.
        ended: called with each trial and its outcome as soon as it is over.
        waits: called with the trials that other processes hold when nothing else is left to do.
        begins: as for `tvlars_probe.runners.sweeps.sweep.sweep`.

    Attributes:
        begins: that function.
        open: the trials that aren't over, in order.
        outcomes: of those that are, by run directory.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: Path,
        ended: Callable[[Trial, Outcome], None],
        waits: Callable[[Sequence[Trial]], None],
        begins: Callable[[Trial], str] = lambda _: "",
    ) -> None:
        self.begins = begins
        self.open = list(trials)
        self.outcomes: dict[Path, Outcome] = {}
        self._folder, self._ended, self._waits = folder / CLAIMS_FOLDER, ended, waits
        self._claims: dict[Path, RunDirectory] = {}
        self._waited_for: set[Path] = set()
        first = {trial.path: outcome(trial.path) for trial in trials}
        self._failed_before = {path for path, now in first.items() if now.status == "failed"}
        for trial in trials:
            if first[trial.path].status in FINISHED:
                self._end(trial, first[trial.path])

    def take(self, trial: Trial) -> bool:
        """Claim an open trial; False if it is over by now, or another process holds it."""
        if self._is_over(trial) or outcome(trial.path).status == RUNNING:
            return False
        place = self._claim_of(trial)
        place.mkdir(parents=True, exist_ok=True)
        try:
            self._claims[trial.path] = RunDirectory.hold(place)
        except RunHeldError:
            return False
        # Whoever held the claim before may just have finished the run.
        if self._is_over(trial):
            self._release(trial)
            return False
        return True

    def put_back(self, trial: Trial, result: Outcome) -> None:
        """Give up the claim on a trial whose work has ended. One that another process trains stays open."""
        if result.status != RUNNING:
            self._end(trial, result)
        self._release(trial)

    def wait(self) -> None:
        """Wait until no trial is open, or one of them can be taken."""
        pause = FIRST_PAUSE
        while self.open:
            if any(trial.path not in self._waited_for for trial in self.open):
                self._waited_for |= {trial.path for trial in self.open}
                self._waits(list(self.open))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            for trial in list(self.open):
                self._is_over(trial)
            if not all(self._is_elsewhere(trial) for trial in self.open):
                return

    def close(self) -> None:
        """Give up all claims."""
        for claim in self._claims.values():
            claim.release()

    def _is_over(self, trial: Trial) -> bool:
        """Whether the trial has ended. What failed before the sweep began is tried again, once."""
        now = outcome(trial.path)
        if now.status in FINISHED or (now.status == "failed" and trial.path not in self._failed_before):
            self._end(trial, now)
            return True
        return False

    def _is_elsewhere(self, trial: Trial) -> bool:
        return outcome(trial.path).status == RUNNING or is_held(self._claim_of(trial))

    def _claim_of(self, trial: Trial) -> Path:
        return self._folder / trial.path.name

    def _end(self, trial: Trial, result: Outcome) -> None:
        self.open.remove(trial)
        self.outcomes[trial.path] = result
        self._ended(trial, result)

    def _release(self, trial: Trial) -> None:
        self._claims.pop(trial.path).release()
