"""On which devices of this machine a run's ranks compute."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tvlars_probe.errors import UserError
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun

if TYPE_CHECKING:
    from tvlars_probe.runners.config import PlaceConfig


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


def device_of(placement: Placement, local_rank: int) -> torch.device:
    """The device of the ``local_rank``-th rank of this machine, which becomes this process's CUDA device."""
    if placement.kind == "cpu":
        return torch.device("cpu")
    index = placement.indices[local_rank] if local_rank < len(placement.indices) else local_rank
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
