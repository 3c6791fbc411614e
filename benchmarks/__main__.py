"""All benchmarks, one after another, and the table of their aims.

    python -m benchmarks                 all of them
    python -m benchmarks steps storage   some

Each is a process of its own; what it found and on what stands in ``benchmarks/results/<name>.json``. One that fails is
named at the end, and the exit code says so; an aim that is not met is a result.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec

import click

from benchmarks.environment import environment
from benchmarks.figures import RESULTS, Figure, load, show

# In order of the table: name of the script, and arguments for it.
ENTRIES: dict[str, tuple[str, ...]] = {
    "steps": (),
    "recording": (),
    "storage": (),
    "analyses": ("--rows", "1e6", "--rows", "1e7"),
    "commands": (),
    "training": (),
    "curvature": ("--rounds", "2"),
    "draws": ("--orders", "300"),
    "suite": (),
}


def run(name: str) -> bool:
    """Run one benchmark in a process of its own; whether it ended well. Its last result is forgotten first."""
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    click.echo(f"\n== {name}")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *ENTRIES[name]], check=False)
    click.echo(f"{name}: {time.perf_counter() - start:.0f} s")
    return done.returncode == 0


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ENTRIES)))
def main(names: tuple[str, ...]) -> None:
    """Run benchmarks (all by default) and print every figure with its aim."""
    there = [name for name in names or ENTRIES if find_spec(f"benchmarks.{name}")]
    start = time.perf_counter()
    failed = [name for name in there if not run(name)]
    figures: list[Figure] = [figure for name in there for figure in load(name)]
    click.echo(f"\n== all, in {(time.perf_counter() - start) / 60:.1f} minutes")
    show(figures)
    click.echo(f"{sum(figure.met for figure in figures)} of {len(figures)} aims met. {environment()}")
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
