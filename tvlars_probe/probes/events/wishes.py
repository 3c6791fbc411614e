"""What this process asks of all ranks, and what they have agreed to do in the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.probes.events.agreement import Agreement, Decision

if TYPE_CHECKING:
    from tvlars_probe.collectives import Ranks


class Wishes:
    """Wishes to stop, to checkpoint and to flush: set by this process, granted when all ranks have learned of them.

    Args:
        ranks: of the run.

    Attributes:
        agreement: by which the ranks learn of them.
        stop: this process asks for a stop; any rank's wish counts. A signal handler may set it.
        checkpoint: likewise for a checkpoint; rank 0's counts.
        flush_agreed: whether all ranks are to flush.
        stop_agreed: whether all ranks have learned that they are to stop.
        checkpoint_agreed: whether all ranks have learned that they are to checkpoint.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.agreement = Agreement(ranks)
        self.stop = self.checkpoint = False
        self.flush_agreed = self.stop_agreed = self.checkpoint_agreed = False

    def agree(self, step: int, *, flush: bool, bad_loss: bool, probe_failed: bool) -> Decision:
        """Learn what all ranks do after ``step``. Every rank calls it.

        Args:
            step: just made.
            flush: whether this process wishes to flush.
            bad_loss: whether its loss isn't finite.
            probe_failed: whether a probe has failed in it.
        """
        decision = self.agreement.decide(
            step,
            Decision(
                flush=flush, checkpoint=self.checkpoint, stop=self.stop, bad_loss=bad_loss, probe_failed=probe_failed
            ),
        )
        self.flush_agreed |= decision.flush
        self.stop_agreed |= decision.stop
        self.checkpoint_agreed |= decision.checkpoint
        return decision

    def agree_to_stop(self) -> bool:
        """Learn of a wish to stop between two steps. Every rank calls it."""
        self.stop_agreed = self.stop_agreed or self.agreement.ranks.any(self.stop)
        return self.stop_agreed

    def forget_checkpoint(self) -> None:
        """The checkpoint that was asked for is made."""
        self.checkpoint = self.checkpoint_agreed = False

    def go_alone(self, ranks: Ranks) -> None:
        """Ask nobody any more: the other ranks may be gone."""
        self.agreement = Agreement(ranks)
