"""Runs under two agents of torchrun, as on two nodes, of which a worker is killed: how often they finish, and how soon.

    python -m benchmarks.agents --times 10

Both agents run on this machine and meet by torchrun's c10d rendezvous. One worker, each rank by turns, is killed with
SIGKILL after the first checkpoint. torchrun starts both workers again. The time counts from the kill to the first step
after it, and the run that comes out must be complete.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.environment import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = (
    "--devices cpu --threads 1 --limit 96 --bs 32 --train-eval-samples 0 --opt tvlars --seed 3 --checkpoint-steps 1"
)
LIMIT_SECONDS = 120.0
"""A run that isn't resumed by then counts as hung."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one run.

    Attributes:
        resumed: seconds from the kill to the first checkpoint after it; None if there was none in `LIMIT_SECONDS`.
        completed: whether the run was completed.
    """

    resumed: float | None
    completed: bool


@contextlib.contextmanager
def two_agents(folder: Path, *words: str, backend: str = "c10d") -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two agents of torchrun with a worker each, which train with ``words``; what they leave running is killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meeting = (
        ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two")
        if backend == "c10d"
        else ("--master-addr", "localhost", "--master-port", str(port))
    )
    agents = []
    for node in range(2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
            "--nproc-per-node", "1", "--max-restarts", "3", *meeting, "-m", "tvlars_probe", "train", *words,
        ]  # fmt: skip
        with (folder / f"agent-{node}.log").open("wb") as log:
            agents.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
    try:
        yield agents
    finally:
        for agent in agents:
            for pid in (agent.pid, *workers(agent.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            agent.wait()


def workers(agent: int) -> list[int]:
    """Process numbers of the workers of an agent."""
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    return []


def checkpoints(run: Path) -> set[int]:
    """The steps of the checkpoints that are there."""
    return {int(p.stem.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*.pt")}


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_a_worker(folder: Path, node: int, backend: str = "c10d", epochs: int = 100) -> Result:
    """Train under two agents, kill the worker of one after the first checkpoint, and see what becomes of the run."""
    run = folder / "run"
    words = (*SETTINGS.split(), "--epochs", str(epochs), "--run-dir", str(run))
    with two_agents(folder, *words, backend=backend) as agents:
        if not wait_for(lambda: checkpoints(run), LIMIT_SECONDS):
            return Result(resumed=None, completed=False)
        for victim in workers(agents[node].pid):
            os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        if not wait_for(lambda: _segments(run) > 1 or agents[0].poll() is not None, LIMIT_SECONDS):
            return Result(resumed=None, completed=False)
        resumed = time.monotonic() - killed
        ended = wait_for(lambda: all(agent.poll() is not None for agent in agents), LIMIT_SECONDS)
        codes = [agent.poll() for agent in agents]
    return Result(resumed=resumed, completed=ended and codes == [0, 0] and _status(run) == "completed")


def _segments(run: Path) -> int:
    """How many times the run was begun or continued."""
    from tvlars_probe import open_run

    return len(open_run(run).manifest.segments)


def _status(run: Path) -> str:
    from tvlars_probe import open_run

    return open_run(run).status


@click.command()
@click.option("--times", default=10, show_default=True)
@click.option("--backend", type=click.Choice(["c10d", "static"]), default="c10d", show_default=True)
def main(times: int, backend: str) -> None:
    """Print what became of each run."""
    print(environment(), flush=True)
    good = 0
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            result = kill_a_worker(Path(folder), number % 2, backend)
            good += result.completed
            how = "hung" if result.resumed is None else f"resumed after {result.resumed:.1f} s"
            end = "completed" if result.completed else "not completed"
            print(f"worker {number % 2} killed: {how}, {end}", flush=True)
            if not result.completed:
                for log in sorted(Path(folder).glob("agent-*.log")):
                    print(log.name, *log.read_text().splitlines()[-15:], sep="\n  ")
    print(f"{good} of {times} runs completed")
    raise SystemExit(good < times)


if __name__ == "__main__":
    main()
