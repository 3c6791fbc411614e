"""Training processes killed with SIGKILL at random moments, resumed, and compared with runs that nobody killed.

    python -m benchmarks.kills --kills 200

Every attempt is a process forked from this one, which has imported everything and computed nothing, so that a kill
costs a fraction of a second. Flushes, compaction and checkpoints are made far more frequent than by default, so
that kills fall into the middle of them. After each kill the run is read: its steps must be whole, each once, and reach
at least as far as the last flush that returned. After some kills a run is let finish and must equal the
uninterrupted one: every table but for clock columns, and every tensor of the last checkpoint.
"""

from __future__ import annotations

import collections
import importlib
import os
import random
import signal
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.environment import environment
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.traces.run_directory import is_held

if TYPE_CHECKING:
    from collections.abc import Callable

CLOCKS = ["run", "time", "step_seconds", "probe_seconds", "seconds", "created_at"]
TABLES = ("steps", "layers", "epochs", "curvature")


def settings(mode: str) -> TrainConfig:
    """A run of a second or so: classification with the sharpness probe, or Barlow Twins and its linear probe."""
    return TrainConfig(
        data=DataConfig(limit=96),
        optimizer=OptimizerConfig(name="tvlars", lr=4.0, lmbda=0.05, excluded_lr=0.01 if mode == "bt" else None),
        place=PlaceConfig(devices=("cpu",), threads=1),
        recording=RecordConfig(checkpoint_steps=4, train_eval_samples=32, keep_checkpoints=2),
        sharpness=SharpnessConfig(every=None if mode == "bt" else "7", operators=("hessian",), samples=16, tol=0.05),
        barlow=BarlowTwinsConfig(epochs=3, projector="16-16", probe_batch_size=16),
        mode=mode,
        batch_size=16,
        epochs=3 if mode == "bt" else 8,
        seed=5,
    )


@dataclass
class Tally:
    """What was done and seen."""

    kills: int = 0
    runs: int = 0
    longest: int = 0
    states: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def report(self) -> str:
        """In a few lines."""
        states = ", ".join(f"{name} {count}" for name, count in sorted(self.states.items()))
        lines = [
            f"{self.kills} kills in {self.runs} runs, up to {self.longest} of one run",
            f"after the kill: {states}",
            f"runs that differ from the uninterrupted one, or traces that aren't whole: {len(self.faults)}",
        ]
        return "\n".join(lines + self.faults)


class Campaign:
    """Kills runs of one kind.

    Args:
        folder: for run directories.
        mode: "clf" or "bt".
        ranks: processes of a run; with two, sometimes only one of them is killed.
        seed: of the moments.
    """

    def __init__(self, folder: Path, mode: str = "clf", ranks: int = 1, seed: int = 0) -> None:
        self.folder, self.ranks, self.config = folder, ranks, settings(mode)
        self._random = random.Random(seed)
        self._whole = folder / "whole"
        self._acks = folder / "acknowledged"
        pids = self._start(self._whole, first=True)
        self._until_begun(self._whole, pids[0])
        began = time.monotonic()
        if any(codes := self._wait(pids)):
            raise RuntimeError(f"the uninterrupted run failed: {codes}")
        self._seconds = time.monotonic() - began

    def run(self, kills: int, tally: Tally) -> None:
        """Make ``kills`` kills, in as many runs as it takes."""
        while kills > 0:
            path = self.folder / f"run-{tally.runs}"
            wanted, done, attempts = min(kills, self._random.randint(1, 8)), 0, 0
            while True:
                attempts += 1
                kill = done < wanted
                killed = self._attempt(path, tally, kill=kill, first=attempts == 1)
                done += killed
                if not killed:
                    break
            kills -= done
            tally.kills, tally.runs, tally.longest = tally.kills + done, tally.runs + 1, max(tally.longest, done)
            fault = _in_child(lambda path=path: _difference(self._whole, path))  # type: ignore[misc]
            if fault:
                tally.faults.append(f"{path.name}, killed {done} times: {fault}")

    def _attempt(self, path: Path, tally: Tally, *, kill: bool, first: bool) -> bool:
        """Start or continue the run; kill it at a random moment or let it finish. Whether it was killed."""
        self._acks.unlink(missing_ok=True)
        before = _last_checkpoint(path)
        pids = self._start(path, first=first)
        if kill:
            if self._random.random() < 0.9:
                self._until_begun(path, pids[0])
            deadline = time.monotonic() + self._random.uniform(0.0, self._seconds)
            while time.monotonic() < deadline and not _ended(pids[0]):
                time.sleep(0.001)
            victims = pids if self.ranks == 1 or self._random.random() < 0.5 else [self._random.choice(pids)]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
        codes = self._wait(pids)
        if not any(codes):
            return False
        if not kill:
            tally.faults.append(f"{path.name}: ended with {codes}")
            return False
        acknowledged = self._acks.read_text().split() if self._acks.exists() else []
        least = int(acknowledged[-1]) if acknowledged else before
        told = _in_child(lambda: _state(path, least))
        state, _, fault = told.partition("|")
        tally.states[state] += 1
        if fault:
            tally.faults.append(f"{path.name}: {fault}")
        return True

    def _until_begun(self, path: Path, pid: int) -> None:
        """Few kills should fall into the time before a run has begun, or goes on."""
        lock = path / ".lock"
        while not _ended(pid) and not (lock.exists() and is_held(path)):
            time.sleep(0.005)

    def _start(self, path: Path, *, first: bool) -> list[int]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return [_fork(lambda rank=rank: self._train(path, rank, port, first)) for rank in range(self.ranks)]  # type: ignore[misc]

    def _train(self, path: Path, rank: int, port: int, first: bool) -> None:
        """In a forked process: what ``tvlars-probe train`` does there."""
        if self.ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks), "MASTER_PORT": str(port),
                "LOCAL_WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "localhost",
                "TORCHELASTIC_RESTART_COUNT": "0" if first else "1",
            }  # fmt: skip
        from tvlars_probe.runners.train import train
        from tvlars_probe.traces import journal, writer

        writer.FIRST_FLUSH_SECONDS, writer.LAST_FLUSH_SECONDS, writer.MOST_PARTS = 0.01, 0.02, 8
        flush = journal.Journal.flush

        def flush_and_tell(self: Any, steps: int) -> None:
            flush(self, steps)
            descriptor = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{steps}\n".encode())
            os.close(descriptor)

        acks = self._acks
        journal.Journal.flush = flush_and_tell  # type: ignore[method-assign]
        train(self.config, path, quiet=True)

    def _wait(self, pids: list[int]) -> list[int]:
        """Exit codes; once one rank has failed the others have little time, as under torchrun."""
        codes: dict[int, int] = {}
        deadline = None
        while len(codes) < len(pids):
            for pid in pids:
                if pid not in codes and _ended(pid):
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if any(codes.values()):
                deadline = deadline or time.monotonic() + 5
                if time.monotonic() > deadline:
                    for pid in {*pids} - codes.keys():
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
        return [codes[pid] for pid in pids]


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(work: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        if not os.environ.get("KILLS_SHOW_ERRORS"):
            os.dup2(null, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _in_child(work: Callable[[], str]) -> str:
    """``work()`` in a forked process: this one must not start threads, which don't survive a fork."""
    reader, writer = os.pipe()

    def tell() -> None:
        try:
            answer = work()
        except Exception as error:
            answer = f"unreadable|{type(error).__name__}: {error}"
        os.write(writer, answer.encode()[:4000])

    pid = _fork(tell)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(pid, 0)
    return answer


def _last_checkpoint(run: Path) -> int:
    names = [p.stem for p in (run / "checkpoints").glob("step-*.pt")] if run.exists() else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def _state(path: Path, least: int) -> str:
    """``status|fault``: whether a killed run's trace is whole and reaches ``least`` steps."""
    from tvlars_probe import open_run
    from tvlars_probe.traces.manifest import FILE_NAME

    if not (path / FILE_NAME).exists():
        return "not begun|" + ("the manifest is gone" if least else "")
    run = open_run(path)
    steps = run.steps(["step"])["step"].tolist()
    fault = ""
    if steps != list(range(len(steps))):
        fault = f"steps are not whole: {steps}"
    elif len(steps) < least:
        fault = f"{len(steps)} steps are there, {least} had been flushed"
    elif run.layers(["step", "parameter"]).duplicated().any():
        fault = "a row of layers stands twice"
    return f"{run.status}|{fault}"


def _difference(whole: Path, path: Path) -> str:
    """How a run that was killed and finished differs from the uninterrupted one; empty where it doesn't."""
    import torch

    from tvlars_probe import open_run
    from tvlars_probe.runners.checkpoints import files as checkpoints

    runs = open_run(whole), open_run(path)
    if runs[1].status != "completed":
        return f"it is {runs[1].status}"
    for table in TABLES:
        a, b = (run.frame(table).drop(columns=CLOCKS, errors="ignore") for run in runs)
        for name in a.select_dtypes("category"):
            a[name], b[name] = a[name].astype(str), b[name].astype(str)
        if not a.equals(b):
            return f"the table {table} differs"
    states = [checkpoints.load([*checkpoints.list_checkpoints(run.path).values()][-1]) for run in runs]
    same = all(_equal(states[0][name], states[1][name], torch.equal) for name in ("step", "model", "optimizer", "rng"))
    return "" if same else "the last checkpoint differs"


def _equal(a: Any, b: Any, equal: Callable[[Any, Any], bool]) -> bool:
    if isinstance(a, dict):
        return a.keys() <= b.keys() and all(
            _equal(a[key], b[key], equal) for key in a
        )  # torch adds defaults on loading
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y, equal) for x, y in zip(a, b, strict=True))
    return bool(equal(a, b)) if hasattr(a, "dtype") else bool(a == b)


@click.command()
@click.option("--kills", default=200, show_default=True, help="Over all kinds of runs.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Print what was found."""
    # Before forking: what a run imports late would cost each attempt seconds.
    for name in ("pandas", "sklearn.datasets", "torch._dynamo", "tvlars_probe.runners.train"):
        importlib.import_module(name)

    shares = {("clf", 1): 0.4, ("bt", 1): 0.2, ("clf", 2): 0.25, ("bt", 2): 0.15}
    faults = 0
    print(environment(), flush=True)
    for (mode, ranks), share in shares.items():
        with tempfile.TemporaryDirectory() as folder:
            tally, began = Tally(), time.monotonic()
            Campaign(Path(folder), mode, ranks, seed).run(round(share * kills), tally)
            print(f"\n{mode}, {ranks} rank(s), {time.monotonic() - began:.0f} s\n{tally.report()}", flush=True)
            faults += len(tally.faults)
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
