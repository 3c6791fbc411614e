"""The processes of a run: which rank this is, on which device, and what ranks do together."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # torch imports it at need: once a group exists, its defaults keep that to the end
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tvlars_probe.runners.config import PlaceConfig


_MEETING_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Placement:
    """Devices of this machine's ranks.

    Attributes:
        kind: "cpu" or "cuda".
        indices: CUDA devices, one per rank.
        nproc: ranks on this machine.
    """

    kind: str
    indices: tuple[int, ...] = ()
    nproc: int = 1


def place(config: PlaceConfig) -> Placement:
    """Find the devices asked for.

    Raises:
        UserError: they don't exist, or don't go with the number of processes.
    """
    _check_port(config.port)
    words = config.devices
    if words == ("auto",):
        words = ("0",) if torch.cuda.is_available() else ("cpu",)
    if words == ("cpu",):
        return Placement("cpu", nproc=config.nproc or 1)
    given = " ".join(words)
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--devices {given}: give 'cpu', 'auto', or numbers of CUDA devices (0 1 2 ...)")
    indices = tuple(int(word) for word in words)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if any(index >= there for index in indices):
        what = f"CUDA devices 0 to {there - 1}" if there else "no CUDA device"
        raise UserError(f"--devices {given}: this machine has {what}; to run on the CPU use --devices cpu (--nproc N)")
    if len({*indices}) < len(indices):
        raise UserError(f"--devices {given}: a device is named twice; each rank needs its own")
    if config.nproc not in (None, len(indices)):
        raise UserError(f"--nproc {config.nproc} with {len(indices)} devices: there is one rank per CUDA device")
    return Placement("cuda", indices, len(indices))


def _check_port(port: int) -> None:
    """Refuse a port that something listens on: the ranks would wait there for ever."""
    if port == 0 or launched_by_torchrun():
        return
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--port {port} can't be used ({error.strerror}): choose another, or 0 for a free one"
            ) from None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the run's.

    Attributes:
        device: where it computes.
        rank: 0 to world_size − 1.
        world_size: number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's tensors, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def from_first(self, thing: Any) -> Any:
        """Rank 0's ``thing`` on every rank."""
        if self.world_size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor (of one shape, on the CPU), on every rank."""
        if self.world_size == 1:
            return [tensor]
        mine = tensor.to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine)
        return [other.cpu() for other in everyone]


def launched_by_torchrun() -> bool:
    """Whether this process was started by torchrun (or anything that sets its environment)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def seat() -> tuple[int, int]:
    """This process's rank and their number, as torchrun says."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def restarted() -> bool:
    """Whether torchrun started this process again after a rank had failed."""
    return launched_by_torchrun() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def join(placement: Placement) -> Ranks:
    """Take this process's place among the ranks; with one there is no process group."""
    if not launched_by_torchrun():
        return Ranks(_device(placement, 0))
    rank, world_size = seat()
    device = _device(placement, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and not dist.is_initialized():
        store, *_ = next(rendezvous("env://", timeout=_MEETING_TIMEOUT))
        # torchrun keeps one store over its restarts: under a fresh prefix the addresses of dead ranks aren't found.
        attempt = PrefixStore(f"tvlars_probe/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size)
    return Ranks(device, rank, world_size)


def leave() -> None:
    """Let the other ranks go."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(placement: Placement, local_rank: int) -> torch.device:
    if placement.kind == "cpu":
        return torch.device("cpu")
    index = placement.indices[local_rank] if local_rank < len(placement.indices) else local_rank
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
