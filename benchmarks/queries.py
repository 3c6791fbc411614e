"""How soon `tvlars-probe query` answers: over the manifests of 200 runs, and over the table ``layers`` of 20.

    python -m benchmarks.queries

Each is a process of its own, started from nothing; the interpreter's own start, doing nothing, alternates with them.
The traces are those of `benchmarks.analyses`: 62 tensors in every step. They are counted in pandas, too: a quick answer
must be the right one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np

import tvlars_probe
from benchmarks.analyses import make_run
from benchmarks.commands import make_runs, run
from benchmarks.figures import Figure, interleaved, milliseconds, save

OF_RUNS = "select optimizer, count(*) as runs, max(best_test_acc1) as best from runs group by optimizer"
OF_LAYERS = "select run, max(trust_ratio) as highest from layers group by run order by run"


def check(folder: str) -> None:
    """Compare the answer over ``layers`` with that of pandas.

    Raises:
        AssertionError: they differ.
    """
    there = tvlars_probe.query(OF_LAYERS, folder).set_index("run")["highest"]
    expected = tvlars_probe.open_runs(folder).layers(["run", "trust_ratio"]).groupby("run", observed=True).max()
    assert (there == expected["trust_ratio"].reindex(there.index)).all()


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--count", default=200, show_default=True, help="Runs whose manifests are asked.")
@click.option("--traces", default=20, show_default=True, help="Runs whose layers are asked.")
@click.option("--rows", default=100_000, show_default=True, help="Rows of layers of each.")
def main(rounds: int, count: int, traces: int, rows: int) -> None:
    """Print the times."""
    with tempfile.TemporaryDirectory() as scratch:
        many, long = Path(scratch, "many"), Path(scratch, "long")
        make_runs(many, count)
        for index in range(traces):
            make_run(long / f"run-{index:02}", rows)
        check(str(long))
        ask = ("-m", "tvlars_probe", "query")
        seconds = interleaved(
            {
                "python": lambda: run("-c", "pass"),
                "imports": lambda: run("-c", "import duckdb, pyarrow.parquet, rich.table"),
                "runs": lambda: run(*ask, OF_RUNS, str(many)),
                "layers": lambda: run(*ask, OF_LAYERS, str(long)),
            },
            rounds,
        )
    note = milliseconds(seconds, "python", "imports")
    save(
        "queries",
        [
            Figure(
                what=f"query over {count} manifests",
                value=float(np.median(seconds["runs"])),
                aim=1,
                unit="s",
                note=note,
            ),
            Figure(
                what=f"query over layers of {traces} runs, {rows:,} rows each",
                value=float(np.median(seconds["layers"])),
                aim=1,
                unit="s",
            ),
        ],
    )


if __name__ == "__main__":
    main()
