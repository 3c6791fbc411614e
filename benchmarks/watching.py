"""What `watch` costs: while it follows a run that is being written, and to print a large run or a folder of runs once.

    python -m benchmarks.watching

The run that is followed has a real recorder, in a process of its own. `watch` has a terminal of 80 columns and 24
lines, and its processor time, its start included, is taken over the time from its start to the run's end.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.commands import make_runs, run
from benchmarks.figures import Figure, interleaved, save
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest

STEPS, FLUSHES = 200, 20


def train(path: str, tensors: int, seconds: float) -> None:
    """Record a loop of small layers for so long, some fifteen steps a second."""
    import torch

    import tvlars_probe

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(tensors // 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    end = time.monotonic() + seconds
    with tvlars_probe.record(model, optimizer, path, total_steps=int(15 * seconds)) as rec:
        while time.monotonic() < end:
            loss = (model(torch.randn(4, 8)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=4)
            time.sleep(0.03)


def follow(path: Path, tensors: int, seconds: float) -> tuple[float, float, int]:
    """Processor seconds of `watch` while a run trains, seconds that it followed, and steps of the run."""
    trainer = multiprocessing.get_context("spawn").Process(target=train, args=(str(path), tensors, seconds))
    trainer.start()
    while not (path / "run.json").exists():
        time.sleep(0.1)
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    before, began = processor_seconds(), time.perf_counter()
    watch = subprocess.Popen(
        [sys.executable, "-m", "tvlars_probe", "watch", str(path)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(theirs)
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    watch.wait()
    spent, ended = processor_seconds() - before, time.perf_counter()  # the trainer isn't waited for yet
    trainer.join()
    steps = Manifest.load(path).segments[-1]["last_step"] + 1
    return spent, ended - began, steps


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(path: Path, spent: list[float]) -> None:
    """Print a run or a folder once, and note the processor seconds that it took."""
    before = processor_seconds()
    run("-m", "tvlars_probe", "watch", "--once", str(path))
    spent.append(processor_seconds() - before)


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except OSError:  # the other side has gone
        return


def make_large(path: Path, tensors: int, *, finished: bool) -> None:
    """A run of many tensors in 200 recorded steps and 20 flushes."""
    names = [f"encoder.layer.{index // 10}.attention.{index % 10}.weight" for index in range(tensors)]
    entry = {"kind": "linear", "shape": [64, 64], "numel": 4096, "optimizer": 0, "group": 0, "adapted": True,
             "decayed": True, "trainable": True, "aliases": []}  # fmt: skip
    parameters = [{"name": name, "layer": name.removesuffix(".weight"), **entry} for name in names]
    journal = Journal.create(path, Manifest(run_id=path.name, parameters={"train": parameters}, total_steps=2 * STEPS))
    journal.begin_segment(0)
    rng, encoded = np.random.default_rng(0), pa.array(names).dictionary_encode()
    sizes = rng.lognormal(size=tensors)
    for step in range(STEPS):
        at = pa.array([1_700_000_000_000_000 + step * 100_000], pa.timestamp("us", tz="UTC"))
        journal.append("steps", {"step": [step], "phase": ["train"], "loss": [2 / (1 + step)], "time": at})
        figures = {
            name: (sizes * rng.lognormal(0, 0.2, tensors)).astype(np.float32)
            for name in ("weight_norm", "grad_norm", "weight_grad_dot", "direction_norm", "update_norm", "trust_ratio")
        }
        journal.append("layers", {"step": np.full(tensors, step), "parameter": encoded, **figures})
        if (step + 1) % (STEPS // FLUSHES) == 0:
            journal.flush(step + 1)
    journal.finish("completed") if finished else journal.release()


@click.command()
@click.option("--tensors", default=1000, show_default=True, help="Tensors of the run that is followed.")
@click.option("--seconds", default=60.0, show_default=True, help="How long it is followed.")
@click.option("--large", default=10_000, show_default=True, help="Tensors of the runs that are printed once.")
@click.option("--count", default=200, show_default=True, help="Runs in the folder.")
@click.option("--rounds", default=7, show_default=True)
def main(tensors: int, seconds: float, large: int, count: int, rounds: int) -> None:
    """Print the costs."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_large(home / "finished", large, finished=True)
        make_large(home / "unfinished", large, finished=False)
        make_runs(home / "runs", count)
        processor: dict[str, list[float]] = {"finished": [], "unfinished": [], "runs": []}
        took = interleaved({name: partial(once, home / name, spent) for name, spent in processor.items()}, rounds)
        used, followed, steps = follow(home / "followed", tensors, seconds)
    medians = {name: float(np.median(seconds)) for name, seconds in took.items()}
    notes = {name: f"processor {np.median(spent):.2f} s" for name, spent in processor.items()}
    size = f"{large:,} tensors, {STEPS} steps"
    save(
        "watching",
        [
            Figure(what=f"a core's share that watch takes, {tensors:,} tensors", value=used / followed, aim=0.05,
                   note=f"processor {used:.2f} s in {followed:.0f} s and {steps:,} steps"),
            Figure(what=f"watch --once, {size}, finished", value=medians["finished"], aim=1, unit="s",
                   note=notes["finished"], floor="half a second of imports, and a million rows"),
            Figure(what=f"watch --once, {size}, unfinished", value=medians["unfinished"], aim=1, unit="s",
                   note=notes["unfinished"]),
            Figure(what=f"watch --once, a folder of {count} runs", value=medians["runs"], aim=1, unit="s",
                   note=notes["runs"]),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
