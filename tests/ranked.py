"""A function on several gloo ranks, each a process of its own; what they return is gathered."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from tvlars_probe.runners.launching.places import Placement
from tvlars_probe.runners.launching.process_group import join, leave

if TYPE_CHECKING:
    from collections.abc import Callable


def on_ranks(work: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """``work(rank, world_size, *args)`` on every rank; must be a function of a module. Results are by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ranks forked from one server that has imported all this once: on two cores each import takes seconds.
    multiprocessing.set_forkserver_preload([__name__, "tvlars_probe.curvature.measuring"])
    args_of_all = (work, world_size, port, folder, args)
    multiprocessing.start_processes(_run, args_of_all, nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run(rank: int, work: Callable[..., Any], world_size: int, port: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    join(Placement("cpu", (), world_size))
    try:
        torch.save(work(rank, world_size, *args), folder / f"rank-{rank}.pt")
    finally:
        leave()
    # A thread of gloo's that drops a tensor while the interpreter ends takes the process with it.
    assert not {name for name in threads() if "gloo" in name}


def threads() -> list[str]:
    """Names of this process's threads, also those that Python doesn't know."""
    return [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
