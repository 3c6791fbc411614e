"""What all ranks of a run do in the same step: flush, checkpoint, stop, notice a non-finite loss or a failed probe.

Every rank learns of the decision in one small collective. On CPUs that is done in every step. On accelerators reading
its result would make the host wait, so it is done at intervals that rank 0 sets.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from tvlars_probe.errors import RunDirectoryError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.collectives import Ranks

_INTERVAL_SECONDS = 1.0
"""Time from one agreement to the next, on accelerators."""

_LONGEST_INTERVAL = 256
"""Most steps from one agreement to the next, however short they are."""

_ENTRY_TIMEOUT = timedelta(seconds=120)
"""How long a rank waits for the others to start recording."""


class Decision(NamedTuple):
    """What a rank wishes, and what the ranks agree on, in a step.

    Attributes:
        flush: write the rows.
        checkpoint: save a checkpoint.
        stop: end the run.
        bad_loss: a loss isn't finite.
        probe_failed: a probe has raised.
        stop_on_finding: a finding ends the run.
    """

    flush: bool = False
    checkpoint: bool = False
    stop: bool = False
    bad_loss: bool = False
    probe_failed: bool = False
    stop_on_finding: bool = False


@dataclass
class Entry:
    """What a rank brings to `Agreement.together`.

    Attributes:
        fingerprint: a number from 0 to 2⁶² that all ranks must have alike.
    """

    fingerprint: int = 0


@dataclass
class Agreement:
    """Turns the wishes of all ranks into one decision; a single rank's wishes are the decision.

    Attributes:
        ranks: the ranks of the run.
    """

    ranks: Ranks
    # The step of the next agreement; step and time of the last one, from which the pace is known.
    _next: int = 0
    _last: tuple[int, float] = (0, 0.0)

    @contextlib.contextmanager
    def together(self) -> Iterator[Entry]:
        """A block that comes to its end on every rank, or raises on every rank: none waits for one that was refused.

        Yields:
            what this rank brings.

        Raises:
            UserError: another rank's block raised, or brings another fingerprint, or one didn't come in time. Where
                this rank's own block raises, it is that error.
        """
        mine, failure = Entry(), None
        try:
            yield mine
        # Kept until all ranks have met: raised here, it would leave the others waiting for this one.
        except Exception as error:
            failure = error
        size, rank = self.ranks.world_size, self.ranks.rank
        try:
            # Maxima: of the number of the first rank that failed, and of the highest and the lowest fingerprint.
            failed, highest, lowest = self.ranks.agree_within(
                [0 if failure is None else size - rank, mine.fingerprint, -mine.fingerprint], _ENTRY_TIMEOUT
            )
        except RuntimeError as error:
            raise failure or UserError(
                f"rank {rank} waited for the other {size - 1} to start recording (at most {_ENTRY_TIMEOUT}), and one "
                f"didn't or failed: call record() on every rank, or with distributed=False on one ({error})"
            ) from None
        if failed:
            self._raise_of(size - failed, failure)
        if highest != -lowest:
            raise UserError(
                "the ranks hold unlike parameters (stages of a pipeline, or shards), which are no one run: record each "
                "rank with distributed=False, into a folder of its own"
            )

    def _raise_of(self, rank: int, mine: Exception | None) -> None:
        """Raise this rank's own failure, or tell what failed on another rank."""
        kind, text = self.ranks.from_rank(rank, (isinstance(mine, RunDirectoryError), str(mine)))
        raise mine or (RunDirectoryError if kind else UserError)(f"rank {rank} can't record: {text}")

    def decide(self, step: int, wish: Decision) -> Decision:
        """Learn what all ranks do after ``step``.

        Rank 0 decides flushes and checkpoints. Any rank may stop the run (a machine of several is taken away), have a
        bad loss or a failed probe.

        Args:
            step: number of updates made.
            wish: what this rank wishes.

        Returns:
            what all ranks do; nothing in the steps between two agreements.
        """
        if self.ranks.world_size == 1:
            return wish
        # `_next` is the same on every rank: none of them calls the collective alone.
        if step < self._next:
            return Decision()
        # On a CPU reading the answer costs nothing; on an accelerator it would make the host wait in each step.
        interval = 1 if self.ranks.device.type == "cpu" else self._interval(step)
        # The collective takes maxima: with zeros from the others, rank 0's wishes and its interval are what is found.
        if not self.ranks.is_first:
            wish, interval = wish._replace(flush=False, checkpoint=False), 0
        *flags, interval = self.ranks.agree([*wish, interval])
        self._next = step + max(interval, 1)
        return Decision(*map(bool, flags))

    def _interval(self, step: int) -> int:
        """Steps until the next agreement: about a second's worth, at the pace since the last one."""
        (last_step, last_time), now = self._last, time.monotonic()
        self._last = step, now
        if step <= last_step or now <= last_time:
            return 1
        return max(1, min(_LONGEST_INTERVAL, round(_INTERVAL_SECONDS * (step - last_step) / (now - last_time))))
