"""How rows, bytes, seconds and memory grow with steps and tensors: the figures of docs/evidence/scaling.md.

    python -m benchmarks.scaling

Each size is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import click

from benchmarks.environment import environment
from benchmarks.storage import names_of, write
from tvlars_probe import open_run

SIZES = ((1_000_000, 100), (4_000_000, 100), (4_000_000, 1_000), (10_000_000, 100))


def measure(rows: int, tensors: int) -> str:
    """One line of the table."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        running, settling = write(Path(folder, "run"), rows, tensors)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        parts = list(Path(folder, "run/trace/layers").glob("part-*"))
        size = sum(part.stat().st_size for part in parts)
        start = time.perf_counter()
        open_run(Path(folder, "run")).layers(["step", "trust_ratio"], parameters=[names_of(tensors)[7]])
        history = time.perf_counter() - start
    return (
        f"{rows:>11,} rows, {tensors:>5,} tensors: {size / rows:.1f} B a row, {running / rows * 1e6:.2f} µs running, "
        f"{settling / rows * 1e6:.2f} µs at the end, {len(parts)} parts, {peak:.0f} MiB above start, "
        f"one history {history:.3f} s"
    )


@click.command()
@click.option(
    "--size", "sizes", type=(int, int), multiple=True, default=SIZES, show_default=True, help="Rows, tensors."
)
def main(sizes: tuple[tuple[int, int], ...]) -> None:
    """Print a line for every size."""
    context = multiprocessing.get_context("spawn")
    for size in sizes:
        with context.Pool(1) as pool:
            print(pool.apply(measure, size))
    print(environment())


if __name__ == "__main__":
    main()
