"""The devices of this machine on which a run's ranks compute."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tvlars_probe.errors import UserError
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun

if TYPE_CHECKING:
    from tvlars_probe.runners.configuration.place import PlaceConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """The ranks of this machine, and their devices.

    Attributes:
        kind: "cpu" or "cuda".
        indices: numbers of the CUDA devices, one per rank; empty on the CPU.
        nproc: number of ranks on this machine.
    """

    kind: str
    indices: tuple[int, ...] = ()
    nproc: int = 1


def place(config: PlaceConfig) -> Placement:
    """Find the devices that ``config`` asks for.

    Raises:
        UserError: they don't exist, or don't go with the number of processes; or the port is taken.
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
    """Refuse a port that can't be bound: the ranks would wait there in vain."""
    if port == 0 or launched_by_torchrun():
        return
    with socket.socket() as trial:
        # With this option a port is free although connections of an earlier run still linger there (TIME_WAIT).
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--port {port} can't be used ({error.strerror}): choose another, or 0 for a free one"
            ) from None


def device_of(placement: Placement, local_rank: int) -> torch.device:
    """The device of rank ``local_rank`` of this machine. A CUDA device becomes this process's current one."""
    if placement.kind == "cpu":
        return torch.device("cpu")
    # Under torchrun there may be more ranks than devices named: "auto" names only device 0.
    index = placement.indices[local_rank] if local_rank < len(placement.indices) else local_rank
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
