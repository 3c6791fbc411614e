"""What all ranks of a run do in the same step: flush, checkpoint, stop, notice a non-finite loss or a failed probe.

Rank 0 decides, and every rank learns of it in one small collective. On CPUs that is done in every step. On
accelerators reading its result would make the host wait, so it is done at intervals that rank 0 sets.
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
_LONGEST_INTERVAL = 256
"""Steps: a run whose steps take microseconds still learns within these of a wish to stop."""

_ENTRY_TIMEOUT = timedelta(seconds=120)


class Decision(NamedTuple):
    """What the ranks agreed on in a step."""

    flush: bool = False
    checkpoint: bool = False
    stop: bool = False
    bad_loss: bool = False
    probe_failed: bool = False


@dataclass
class Agreement:
    """How the ranks of a run come to do the same; with one rank its wishes are the decision.

    Attributes:
        ranks: of the run.
    """

    ranks: Ranks
    _next: int = 0
    _last: tuple[int, float] = (0, 0.0)

    def enter(self, failed: bool) -> bool:
        """Wait until every rank is here; whether any of them failed.

        Raises:
            UserError: the others don't come.
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
        """
        if self.ranks.world_size == 1:
            return wish
        if step < self._next:
            return Decision()
        # On a CPU reading the answer costs nothing; on an accelerator it would make the host wait in each step.
        interval = 1 if self.ranks.device.type == "cpu" else self._interval(step)
        if not self.ranks.is_first:
            wish, interval = wish._replace(flush=False, checkpoint=False), 0
        *flags, interval = self.ranks.agree([*wish, interval])
        self._next = step + max(interval, 1)
        return Decision(*map(bool, flags))

    def _interval(self, step: int) -> int:
        """Steps until the next agreement, about a second's worth."""
        (last_step, last_time), now = self._last, time.monotonic()
        self._last = step, now
        if step <= last_step or now <= last_time:
            return 1
        return max(1, min(_LONGEST_INTERVAL, round(_INTERVAL_SECONDS * (step - last_step) / (now - last_time))))
