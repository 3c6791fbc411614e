"""Two sweeps over one grid at once: how often both end with every run finished, and each run trained once.

python -m benchmarks.two_sweeps --times 10
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.environment import environment

GRID = (
    "--opt lars tvlars --lr 1 2 --limit 64 --bs 32 --epochs 2 --devices cpu --threads 1 --train-eval-samples 0 --out s"
)
RUNS = 4


@dataclass(frozen=True, kw_only=True)
class Result:
    """How two sweeps ended.

    Attributes:
        codes: their exit codes.
        outputs: what they printed.
        faults: what is wrong with their runs.
    """

    codes: tuple[int, int]
    outputs: tuple[str, str]
    faults: list[str]


def at_once(folder: Path, *launchers: str) -> Result:
    """Start a sweep with each of two launchers, both over `GRID`, and wait for them."""
    command = [sys.executable, "-m", "tvlars_probe", "sweep", *GRID.split(), "--launcher"]
    sweeps = [
        subprocess.Popen(
            [*command, launcher],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for launcher in launchers
    ]
    one, two = (sweep.communicate(timeout=600)[0] for sweep in sweeps)
    return Result(codes=(sweeps[0].returncode, sweeps[1].returncode), outputs=(one, two), faults=_faults(folder / "s"))


def _faults(folder: Path) -> list[str]:
    """Runs that aren't completed, or were begun more than once."""
    from tvlars_probe import open_run
    from tvlars_probe.traces.run_directory import find_runs

    runs = [open_run(path) for path in find_runs(folder)]
    faults = [f"{run.path.name} is {run.status}" for run in runs if run.status != "completed"]
    faults += [f"{run.path.name} was begun twice" for run in runs if len(run.manifest.segments) != 1]
    return faults if len(runs) == RUNS else [*faults, f"{len(runs)} runs"]


@click.command()
@click.option("--times", default=10, show_default=True)
def main(times: int) -> None:
    """Print how each pair of sweeps ended."""
    print(environment(), flush=True)
    good = 0
    kinds = itertools.cycle(itertools.product(("inline", "local"), repeat=2))
    for launchers in itertools.islice(kinds, times):
        with tempfile.TemporaryDirectory() as folder:
            result = at_once(Path(folder), *launchers)
        fine = result.codes == (0, 0) and not result.faults
        good += fine
        waited = sum("Waiting for" in output for output in result.outputs)
        print(
            f"{' and '.join(launchers)}: exit codes {result.codes}, {waited} waited, faults {result.faults}", flush=True
        )
        if not fine:
            print(*result.outputs, sep="\n")
    print(f"{good} of {times} pairs finished every run, each trained once")
    raise SystemExit(good < times)


if __name__ == "__main__":
    main()
