"""Joining the process group of a run, and leaving it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  imported before a group exists: its functions' defaults would keep one alive

from tvlars_probe.collectives import Ranks, is_distributed
from tvlars_probe.runners.launching.meeting import meet
from tvlars_probe.runners.launching.places import Placement, device_of
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun, seat

if TYPE_CHECKING:
    from tvlars_probe.runners.launching.meeting import Meeting


def join(placement: Placement, meeting: Meeting | None = None) -> Ranks:
    """Take this process's place among the ranks, and join their process group if there are several.

    Args:
        placement: the ranks of this machine.
        meeting: where they have met, if they have.
    """
    if not launched_by_torchrun():
        return Ranks(device_of(placement, 0))
    rank, world_size = seat()
    # Launchers other than torchrun may leave LOCAL_RANK out.
    device = device_of(placement, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = (meeting or meet()).store
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return Ranks(device, rank, world_size)


_DROPPING = 0.1
"""Seconds in which gloo's threads drop the tensors of the last collective."""


def leave() -> None:
    """Leave the process group, where there is one."""
    if is_distributed():
        # To drop a tensor a thread of gloo's takes the interpreter's lock, which a sleep sets free. torch 2.6 keeps it
        # while it destroys the group and waits for that thread: each would wait for the other for ever.
        time.sleep(_DROPPING)
        dist.destroy_process_group()
