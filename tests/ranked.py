"""A function, or a command line, on several gloo ranks, each a process of its own; what they return is gathered."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from tvlars_probe.runners.launching.places import Placement
from tvlars_probe.runners.launching.process_group import join, leave

if TYPE_CHECKING:
    from collections.abc import Callable

# What training and measuring import when they first need it. Ranks are forked from one server that has imported all
# of it once: in a process of its own each import takes seconds, of which two cores have few.
_PRELOADED = (
    __name__,
    "pandas",
    "sklearn.datasets",
    "torch._dynamo",
    "tvlars_probe.cli",
    "tvlars_probe.commands.train",
    "tvlars_probe.curvature.measuring",
    "tvlars_probe.runners.train",
    "tvlars_probe.runners.phases.running",
)


def on_ranks(work: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """``work(rank, world_size, *args)`` on every rank; must be a function of a module. Results are by rank."""
    _start(_joined, world_size, work, folder, args)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def cli_on_ranks(world_size: int, *args: object, cwd: Path) -> str:
    """`tvlars-probe` in ``cwd`` on every rank, as torchrun starts it; what the first rank wrote to its stdout.

    It costs a fraction of starting the program with ``--nproc``, whose own tests are in tests/runners/launching.
    """
    _start(_command, world_size, [str(a) for a in args], cwd)
    return (cwd / "rank-0.out").read_text()


def _start(run: Callable[..., Any], world_size: int, *args: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(list(_PRELOADED))
    seat = (world_size, port)
    multiprocessing.start_processes(_seated, (run, seat, args), nprocs=world_size, start_method="forkserver")


def _seated(rank: int, run: Callable[..., Any], seat: tuple[int, int], args: tuple[Any, ...]) -> None:
    world_size, port = seat
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1")
    run(rank, world_size, *args)
    # A thread of gloo's that drops a tensor while the interpreter ends takes the process with it.
    assert not {name for name in threads() if "gloo" in name}


def _joined(rank: int, world_size: int, work: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    join(Placement("cpu", (), world_size))
    try:
        torch.save(work(rank, world_size, *args), folder / f"rank-{rank}.pt")
    finally:
        leave()
    if "torch.distributed.tensor" in sys.modules and "pt_gloo_runloop" in threads():
        # torch keeps a group that has gathered a DTensor: so the interpreter isn't ended beside the group's threads.
        sys.stdout.flush()
        os._exit(0)


def _command(rank: int, world_size: int, args: list[str], cwd: Path) -> None:
    from tvlars_probe.cli import main

    os.chdir(cwd)
    with Path(f"rank-{rank}.out").open("w") as out, contextlib.redirect_stdout(out):
        main(args, standalone_mode=False)


def threads() -> list[str]:
    """Names of this process's threads, also those that Python doesn't know."""
    return [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
