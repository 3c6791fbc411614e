"""What all ranks of a run do in the same step: flush, checkpoint, stop, notice a non-finite loss or a failed probe.

Every rank learns of the decision in one small collective. On CPUs that is done in every step. On accelerators reading
its result would make the host wait, so it is done at intervals that rank 0 sets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
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
    """

    flush: bool = False
    checkpoint: bool = False
    stop: bool = False
    bad_loss: bool = False
    probe_failed: bool = False


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

    def enter(self, failed: bool) -> bool:
        """Wait until every rank is here, and return whether any of them failed.

        Raises:
            UserError: another rank didn't come in time.
        """
        try:
            return self.ranks.any_within(failed, _ENTRY_TIMEOUT)
        except RuntimeError as error:
            raise UserError(
                f"rank {self.ranks.rank} waited for the other {self.ranks.world_size - 1} to start recording (at most "
                f"{_ENTRY_TIMEOUT}), and one didn't or failed: call record() on every rank, or with distributed=False "
                f"on one ({error})"
            ) from None

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
