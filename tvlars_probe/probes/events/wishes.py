"""What this process asks of all ranks, and what they have agreed to do in the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.probes.events.agreement import Agreement, Decision

if TYPE_CHECKING:
    from tvlars_probe.collectives import Ranks


class Wishes:
    """Wishes to stop, to checkpoint and to flush: set by this process, granted when all ranks have learned of them.

    Args:
        ranks: the ranks of the run.

    Attributes:
        agreement: how the ranks learn of the wishes.
        stop: whether this process asks for a stop. Any rank's wish counts; a signal handler may set it.
        stop_on_finding: whether a finding asks for a stop: rank 0 alone knows of findings.
        checkpoint: whether this process asks for a checkpoint. Rank 0's wish counts.
        flush_agreed: whether all ranks are to flush.
        stop_agreed: whether all ranks have learned that they are to stop, for whichever reason.
        finding_agreed: whether all ranks have learned that a finding ends the run.
        checkpoint_agreed: whether all ranks have learned that they are to checkpoint.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.agreement = Agreement(ranks)
        self.stop = self.checkpoint = self.stop_on_finding = False
        self.flush_agreed = self.stop_agreed = self.checkpoint_agreed = self.finding_agreed = False

    def agree(self, step: int, *, flush: bool, bad_loss: bool, probe_failed: bool) -> Decision:
        """Learn what all ranks do after ``step``. Every rank calls it.

        Args:
            step: number of updates made.
            flush: whether this process wishes to flush.
            bad_loss: whether this process's loss isn't finite.
            probe_failed: whether a probe has failed in this process.
        """
        decision = self.agreement.decide(
            step,
            Decision(
                flush=flush,
                checkpoint=self.checkpoint,
                stop=self.stop,
                bad_loss=bad_loss,
                probe_failed=probe_failed,
                stop_on_finding=self.stop_on_finding,
            ),
        )
        # What was agreed stands until it is done: the decisions of later steps may say nothing.
        self.flush_agreed |= decision.flush
        self.stop_agreed |= decision.stop or decision.stop_on_finding
        self.finding_agreed |= decision.stop_on_finding
        self.checkpoint_agreed |= decision.checkpoint
        return decision

    def agree_to_stop(self) -> bool:
        """Learn between two steps whether the ranks are to stop. Every rank calls it."""
        # `stop_agreed` is the same on all ranks: either all of them call the collective, or none does.
        self.stop_agreed = self.stop_agreed or self.agreement.ranks.any(self.stop)
        return self.stop_agreed

    def forget_checkpoint(self) -> None:
        """Drop the wish for a checkpoint, which has been made."""
        self.checkpoint = self.checkpoint_agreed = False

    def go_alone(self, ranks: Ranks) -> None:
        """Decide alone from now on: the other ranks may be gone."""
        self.agreement = Agreement(ranks)
