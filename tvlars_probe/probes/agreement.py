"""What all ranks of a run do in the same step: flush, checkpoint, stop, notice a non-finite loss or a failed probe.

Rank 0 decides, and every rank learns of it in one small collective. On CPUs that is done in every step. On
accelerators reading its result would make the host wait, so it is done at intervals that rank 0 sets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from tvlars_probe.errors import UserError

_INTERVAL_SECONDS = 1.0
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
    """The ranks of a run. With one rank there is nothing to agree on and no collective.

    Attributes:
        device: where collectives of the process group want their tensors.
        rank: this process.
        world_size: number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    _next: int = 0
    _last: tuple[int, float] = (0, 0.0)

    @classmethod
    def of_process_group(cls, device: torch.device, distributed: bool | None) -> Agreement:
        """The default process group, where there is one and it isn't refused."""
        if distributed is False or not (dist.is_available() and dist.is_initialized()):
            return cls(device)
        return cls(device, dist.get_rank(), dist.get_world_size())

    def enter(self, failed: bool) -> bool:
        """Wait until every rank is here; whether any of them failed.

        Raises:
            UserError: the others don't come.
        """
        if self.world_size == 1:
            return failed
        flag = torch.tensor([int(failed)], device=self.device)
        try:
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)
            assert work is not None
            work.wait(_ENTRY_TIMEOUT)
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} waited for the other {self.world_size - 1} to start recording (at most "
                f"{_ENTRY_TIMEOUT}), and one didn't or failed: call record() on every rank, or with distributed=False "
                f"on one ({error})"
            ) from None
        return bool(flag.item())

    def decide(self, step: int, wish: Decision) -> Decision:
        """Learn what all ranks do after ``step``.

        Rank 0 decides flushes and checkpoints. Any rank may stop the run (a machine of several is taken away), have a
        bad loss or a failed probe.
        """
        if self.world_size == 1:
            return wish
        if step < self._next:
            return Decision()
        interval = 1 if self.device.type == "cpu" else self._interval(step)
        if self.rank > 0:
            wish, interval = wish._replace(flush=False, checkpoint=False), 0
        message = torch.tensor([int(value) for value in (*wish, interval)], device=self.device)
        dist.all_reduce(message, dist.ReduceOp.MAX)
        *flags, interval = message.tolist()
        self._next = step + max(interval, 1)
        return Decision(*map(bool, flags))

    def _interval(self, step: int) -> int:
        """Steps until the next agreement, about a second's worth."""
        (last_step, last_time), now = self._last, time.monotonic()
        self._last = step, now
        if step <= last_step or now <= last_time:
            return 1
        return max(1, min(256, round(_INTERVAL_SECONDS * (step - last_step) / (now - last_time))))

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; all of them call it."""
        if self.world_size == 1:
            return flag
        message = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(message, dist.ReduceOp.MAX)
        return bool(message.item())

    def from_first(self, flag: bool) -> bool:
        """Rank 0's ``flag`` on every rank."""
        if self.world_size == 1:
            return flag
        message = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(message, 0)
        return bool(message.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values
