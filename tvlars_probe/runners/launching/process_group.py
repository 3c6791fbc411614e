"""Joining the process group of a run, and leaving it."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  imported before a group exists: its functions' defaults would keep one alive
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tvlars_probe.collectives import Ranks, is_distributed
from tvlars_probe.runners.launching.places import Placement, device_of
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun, seat

_MEETING_TIMEOUT = timedelta(minutes=30)
"""Under torchrun the other ranks wait this long for rank 0, which first loads the data and plans the run."""


def join(placement: Placement) -> Ranks:
    """Take this process's place among the ranks, and join their process group if there are several."""
    if not launched_by_torchrun():
        return Ranks(device_of(placement, 0))
    rank, world_size = seat()
    # Launchers other than torchrun may leave LOCAL_RANK out.
    device = device_of(placement, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and not dist.is_initialized():
        store, *_ = next(rendezvous("env://", timeout=_MEETING_TIMEOUT))
        # torchrun keeps one store over its restarts. Under a prefix of its own an attempt doesn't find the addresses
        # that the dead ranks of the last one left there.
        attempt = PrefixStore(f"tvlars_probe/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size)
    return Ranks(device, rank, world_size)


def leave() -> None:
    """Leave the process group, where there is one."""
    if is_distributed():
        dist.destroy_process_group()
