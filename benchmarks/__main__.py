"""All benchmarks, one after another, and the table of their aims.

    python -m benchmarks                 all that have an aim
    python -m benchmarks steps storage   some
    python -m benchmarks --smoke         every script once, far too small to measure anything: does it still run?

Each is a process of its own; what it found and on what stands in ``benchmarks/results/<name>.json``. One that fails is
named at the end, and the exit code says so; an aim that is not met is a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.environment import environment
from benchmarks.figures import RESULTS, Figure, load, show


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How a script is called.

    Attributes:
        whole: arguments of a measurement; None for a script that is called by itself: it has no aim,
            or it is the tests.
        smoke: arguments of the smallest call that goes through all of it; None for one that the tests call, or that
            calls the tests.
            ``{scratch}`` is a folder.
    """

    whole: tuple[str, ...] | None = None
    smoke: tuple[str, ...] | None


ENTRIES = {
    "steps": Entry(whole=(), smoke=("--rounds", "1", "--model", "ResNet-18")),
    "recording": Entry(whole=(), smoke=("--batch-size", "2", "--rounds", "2")),
    "storage": Entry(whole=(), smoke=("--rows", "500000")),
    "analyses": Entry(
        whole=("--rows", "1e6", "--rows", "1e7"), smoke=("--rows", "1e4", "--rounds", "1", "--runs", "2")
    ),
    "commands": Entry(whole=(), smoke=("--rounds", "1", "--count", "2")),
    "training": Entry(whole=(), smoke=("--batch-size", "4", "--rounds", "1")),
    "curvature": Entry(
        whole=("--rounds", "2"),
        smoke=("--rounds", "1", "--batch-size", "8", "--steps", "1", "--product-batch-size", "2", "--small"),
    ),
    "planted": Entry(
        whole=("--cases", "1600", "--steps", "20", "--spectra", "10"),
        smoke=("--cases", "16", "--steps", "1", "--run", "sgd, lr 0.1", "--spectra", "1"),
    ),
    "draws": Entry(
        whole=("--orders", "250"), smoke=("--size", "16", "--orders", "2", "--repetitions", "9", "--steps", "9")
    ),
    "augmentation": Entry(smoke=("--batch-size", "8", "--batches", "1", "--rounds", "1")),
    "scaling": Entry(smoke=("--size", "500000", "100")),
    "memory": Entry(smoke=None),
    "kills": Entry(smoke=None),
    "agents": Entry(smoke=None),
    "two_sweeps": Entry(smoke=("--times", "1")),
    "fuzz": Entry(smoke=("--cases", "5")),
    "gpu": Entry(smoke=("--device", "cpu", "--small")),
    "suite": Entry(smoke=None),
    "identity": Entry(smoke=("record", "{scratch}/identity.json", "--part", "loops")),
}
"""By name of the script, in order of the table."""


def run(name: str) -> bool:
    """Run one benchmark in a process of its own; whether it ended well. Its last result is forgotten first."""
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    click.echo(f"\n== {name}")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *(ENTRIES[name].whole or ())], check=False)
    click.echo(f"{name}: {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


def run_small(name: str, scratch: Path) -> bool:
    """Call a script at its smallest size; whether it ended well. What it printed is shown only if not."""
    words = [word.format(scratch=scratch) for word in ENTRIES[name].smoke or ()]
    settings = {"BENCHMARK_RESULTS": str(scratch / "results"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ended = "ran" if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    click.echo(f"{name}: {ended}, {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


def run_all_small(names: list[str]) -> list[str]:
    """Call scripts at their smallest size, two at a time; the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        # The longest stand last in the table: begun first, they leave neither core idle at the end.
        order = [*reversed(names)]
        ended = list(pool.map(lambda name: run_small(name, Path(folder)), order))
    return [name for name, well in zip(order, ended, strict=True) if not well]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ENTRIES)))
@click.option("--smoke", is_flag=True, help="Every script once at a tiny size; nothing is measured.")
def main(names: tuple[str, ...], smoke: bool) -> None:
    """Run benchmarks (by default all that have an aim) and print every figure with its aim."""
    start = time.perf_counter()
    if smoke:
        there = [name for name in names or ENTRIES if ENTRIES[name].smoke is not None]
        failed = run_all_small(there)
    else:
        there = [*names] or [name for name, entry in ENTRIES.items() if entry.whole is not None]
        failed = [name for name in there if not run(name)]
    click.echo(f"\n== all, in {(time.perf_counter() - start) / 60:.1f} minutes")
    if not smoke:
        figures: list[Figure] = [figure for name in there for figure in load(name)]
        show(figures)
        click.echo(f"{sum(figure.met for figure in figures)} of {len(figures)} aims met. {environment()}")
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
