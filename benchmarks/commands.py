"""How soon the command line answers: ``--help``, and ``runs`` over 200 runs.

    python -m benchmarks.commands

Each is a process of its own, started from nothing; the interpreter's own start, doing nothing, alternates with them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from benchmarks.figures import Figure, interleaved, milliseconds, save
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest


def make_runs(folder: Path, count: int) -> None:
    """Finished runs with manifests as large as a ResNet-18's."""
    parameters = {"name": "layer1.0.conv1.weight", "layer": "layer1.0.conv1", "kind": "conv", "shape": [64, 64, 3, 3]}
    group = {"optimizer": "LARS", "lr": 1.0, "weight_decay": 5e-4, "parameters": 62}
    for index in range(count):
        manifest = Manifest(run_id=f"r{index}", parameters={"train": [parameters] * 62}, groups=[group], peak_lr=1.0)
        journal = Journal.create(folder / f"run-{index:03}", manifest)
        journal.begin_segment(0)
        journal.append("steps", {"step": [0], "loss": [1.0]})
        journal.append_epoch({"step": 1, "epoch": 0, "phase": "train", "test_acc1": 50.0})
        journal.flush(1)
        journal.finish("completed")


def run(*arguments: str) -> None:
    """Call the interpreter and wait for it."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--count", default=200, show_default=True, help="Runs to list.")
def main(rounds: int, count: int) -> None:
    """Print the times."""
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder), count)
        seconds = interleaved(
            {
                "python": lambda: run("-c", "pass"),
                "help": lambda: run("-m", "tvlars_probe", "--help"),
                "runs": lambda: run("-m", "tvlars_probe", "runs", folder),
            },
            rounds,
        )
    note = milliseconds(seconds, "python")
    floor = "200 manifests are read and checked entry by entry"
    save(
        "commands",
        [
            Figure(what="--help", value=float(np.median(seconds["help"])), aim=0.3, unit="s", note=note),
            Figure(
                what=f"runs over {count} runs", value=float(np.median(seconds["runs"])), aim=1, unit="s", floor=floor
            ),
        ],
    )


if __name__ == "__main__":
    main()
