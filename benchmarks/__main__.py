"""All benchmarks, one after another, and the table of their aims.

    python -m benchmarks                 all that have an aim
    python -m benchmarks steps storage   some
    python -m benchmarks --smoke         every script once, far too small to measure anything: does it still run?

Each is a process of its own; those that take times run alone. What a script found, and on what, stands in
``benchmarks/results/<name>.json``. One that fails is named at the end, and the exit code says so; an aim that isn't met
is a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.environment import environment
from benchmarks.figures import RESULTS, Figure, load, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIGN_OF_LIFE = 30
"""Seconds between lines that tell that work goes on."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How a script is called.

    Attributes:
        whole: arguments of a measurement; None for a script that is called by itself: it has no aim,
            or it is the tests.
        timed: whether the measurement takes times, so that nothing else may run beside it.
        smoke: arguments of the smallest call that goes through all of it; None for one that the tests call, or that
            calls the tests.
            ``{scratch}`` is a folder.
    """

    whole: tuple[str, ...] | None = None
    timed: bool = True
    smoke: tuple[str, ...] | None


ENTRIES = {
    "steps": Entry(whole=(), smoke=("--rounds", "1", "--model", "ResNet-18")),
    "recording": Entry(whole=("--rounds", "12"), smoke=("--batch-size", "2", "--rounds", "2")),
    "exports": Entry(whole=("--rounds", "8"), smoke=("--batch-size", "2", "--seconds", "0.1", "--rounds", "2")),
    "storage": Entry(whole=(), smoke=("--rows", "500000")),
    "analyses": Entry(
        whole=("--rows", "1e6", "--rows", "1e7"), smoke=("--rows", "1e4", "--rounds", "1", "--runs", "2")
    ),
    "commands": Entry(whole=(), smoke=("--rounds", "1", "--count", "2")),
    "queries": Entry(whole=(), smoke=("--rounds", "1", "--count", "2", "--traces", "2", "--rows", "10000")),
    "watching": Entry(
        whole=(), smoke=("--tensors", "20", "--seconds", "2", "--large", "50", "--count", "3", "--rounds", "1")
    ),
    "board": Entry(
        whole=(),
        smoke=("--count", "3", "--large", "50", "--tensors", "20", "--seconds", "5", "--rounds", "1"),
    ),
    "training": Entry(whole=("--rounds", "21"), smoke=("--batch-size", "4", "--rounds", "1")),
    "curvature": Entry(
        whole=("--rounds", "2", "--batch-size", "32"),
        smoke=("--rounds", "1", "--batch-size", "8", "--steps", "1", "--product-batch-size", "2", "--small"),
    ),
    "noise": Entry(
        whole=(),
        smoke=("--model", "cnn", "--batch-size", "4", "--rounds", "1", "--samples", "16", "--budget", "200"),
    ),
    "gauss_newton": Entry(whole=None, smoke=("--rounds", "1", "--batch-size", "4", "--model", "cnn")),
    "batch_sharpness": Entry(
        whole=None, smoke=("--ds", "digits", "--batch-sizes", "512", "--seeds", "1", "--steps", "4")
    ),
    "planted": Entry(
        whole=("--cases", "1600", "--steps", "20"),
        timed=False,
        smoke=("--cases", "16", "--steps", "1", "--run", "sgd, lr 0.1", "--spectra", "2"),
    ),
    "draws": Entry(
        whole=("--orders", "250"),
        timed=False,
        smoke=("--size", "16", "--orders", "2", "--repetitions", "9", "--steps", "9"),
    ),
    "findings": Entry(whole=("--seeds", "1"), timed=False, smoke=("--seeds", "1", "--runs", "2")),
    "augmentation": Entry(smoke=("--batch-size", "8", "--batches", "1", "--rounds", "1")),
    "critical_batch": Entry(smoke=("--draws", "1", "--resamples", "20", "--usual")),
    "scaling": Entry(smoke=("--size", "500000", "100")),
    "trainers": Entry(smoke=None),
    "memory": Entry(smoke=None),
    "kills": Entry(smoke=None),
    "agents": Entry(smoke=None),
    "two_sweeps": Entry(smoke=None),
    "three_answers": Entry(smoke=None),
    "verdicts": Entry(smoke=("run", "digits-mlp-sgd", "--runs", "{scratch}/verdicts", "--first", "1", "--jobs", "1")),
    "fuzz": Entry(smoke=None),
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
    done = subprocess.run([*command_of(name), *(ENTRIES[name].whole or ())], check=False)
    click.echo(f"{name}: {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


def command_of(name: str) -> list[str]:
    """The words that call a script."""
    return [sys.executable, "-m", f"benchmarks.{name}"]


def run_side_by_side(
    names: list[str], words: Callable[[str], Iterable[str]], settings: dict[str, str], *, tells: bool
) -> list[str]:
    """Run benchmarks that take no times, two at a time with a thread each; the names of those that failed.

    Args:
        names: of the benchmarks; the first are begun first.
        words: the arguments of each.
        settings: further variables of their environment.
        tells: whether to print what each printed, once it has ended; what a failed one printed is always shown.
    """

    def call(name: str) -> bool:
        start = time.perf_counter()
        done = subprocess.run(
            [*command_of(name), *words(name)],
            env={**os.environ, **settings, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        well, seconds = done.returncode == 0, f"{time.perf_counter() - start:.0f} s"
        if not well:
            click.echo(f"{name}: exit {done.returncode}, {seconds}\n{done.stdout}\n{done.stderr}")
        elif tells:
            click.echo(f"\n== {name}\n{done.stdout}{name}: {seconds}")
        else:
            click.echo(f"{name}: ran, {seconds}")
        return well

    with ThreadPoolExecutor(2) as pool:
        running = {pool.submit(call, name): name for name in names}
        start = time.perf_counter()
        while left := wait(running, timeout=SIGN_OF_LIFE).not_done:
            click.echo(f"{time.perf_counter() - start:.0f} s, {len(left)} not done", err=True)
    return [name for job, name in running.items() if not job.result()]


def run_whole(names: list[str]) -> list[str]:
    """Measure: first what takes times, one after another, then the rest; the names of those that failed."""
    timed, others = ([name for name in names if ENTRIES[name].timed is kind] for kind in (True, False))
    failed = [name for name in timed if not run(name)]
    if not others:
        return failed
    click.echo(f"\n== side by side, a thread each: {', '.join(others)}")
    for name in others:
        (RESULTS / f"{name}.json").unlink(missing_ok=True)
    return failed + run_side_by_side(others, lambda name: ENTRIES[name].whole or (), {}, tells=True)


def run_small(names: list[str]) -> list[str]:
    """Call each script at its smallest size; the names of those that failed."""
    with tempfile.TemporaryDirectory() as scratch:
        return run_side_by_side(
            # The longest stand last in the table: begun first, they leave neither core idle at the end.
            [*reversed(names)],
            lambda name: [word.format(scratch=scratch) for word in ENTRIES[name].smoke or ()],
            {"BENCHMARK_RESULTS": str(Path(scratch, "results"))},
            tells=False,
        )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ENTRIES)))
@click.option("--smoke", is_flag=True, help="Every script once at a tiny size; nothing is measured.")
def main(names: tuple[str, ...], smoke: bool) -> None:
    """Run benchmarks (by default all that have an aim) and print every figure with its aim."""
    start = time.perf_counter()
    if smoke:
        there = [name for name in names or ENTRIES if ENTRIES[name].smoke is not None]
        failed = run_small(there)
    else:
        there = [*names] or [name for name, entry in ENTRIES.items() if entry.whole is not None]
        failed = run_whole(there)
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
