"""How large may the batch be? Three answers for SGD, LARS and LAMB on digits and Fashion-MNIST, and whether they agree.

    python -m benchmarks.three_answers --folder runs/batch-size

For each data set and optimizer: the sweeps of `benchmarks/batch_size` (batches from 32 on, five constant rates, three
seeds) give the time to a target; a run with the middle batch at its best rate records its noise on the way to the
target; at a checkpoint halfway there its noise is measured on a sample, and branches with all batches go on from it,
the rate by the root of the batch. Finished runs are skipped, so that it can be stopped and started again. All of it
takes about two and a half hours of processor time: give --task to run parts of it side by side.
"""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvlars_probe import open_run
from tvlars_probe.analyses.batches.batch_size import side_by_side
from tvlars_probe.analyses.batches.branches import branches_of
from tvlars_probe.analyses.batches.noise_verdict import interval_text
from tvlars_probe.analyses.batches.time_to_target import time_to_target
from tvlars_probe.analyses.of_runs import noise_scale_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.cli import main as command_line
from tvlars_probe.runs import open_runs

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.batches.batch_size import BatchSizeAnswers
    from tvlars_probe.analyses.batches.time_to_target import TimeToTarget
    from tvlars_probe.runs import Run

GRIDS = Path(__file__).parent / "batch_size"
OPTIMIZERS = ("sgd", "lars", "lamb")


@dataclass(frozen=True)
class Data:
    """How a data set is trained on.

    Attributes:
        words: options of ``train``.
        middle: batch size of the run from which branches start.
        batches: those of the branches.
        samples: on which each branch trains; a multiple of every batch.
        seen: samples of an epoch.
    """

    words: tuple[str, ...]
    middle: int
    batches: tuple[int, ...]
    samples: int
    seen: int


DATA = {
    "digits": Data(("--ds", "digits", "--model", "cnn"), 128, (32, 64, 128, 256, 512, 1024), 8192, 1437),
    "fashion": Data(
        ("--ds", "fashion-mnist", "--limit", "10000", "--model", "mlp"),
        512, (32, 64, 128, 256, 512, 1024, 2048, 4096), 32768, 10000,
    ),
}  # fmt: skip


def call(*words: object) -> None:
    """A command of the package, in this process; what it prints goes to stderr.

    Raises:
        SystemExit: it was refused. A sweep in which a run diverged goes on.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            command_line.main([str(word) for word in words])
        except SystemExit as end:
            if end.code not in (0, 1):
                raise


def swept(folder: Path, data: str, optimizer: str) -> TimeToTarget:
    """The sweeps over batches, and what they tell of the time to a target."""
    places = []
    for grid in sorted(GRIDS.glob(f"{data}-{optimizer}-*.toml")):
        places.append(str(folder / grid.stem))
        call("sweep", grid, "--out", places[-1])
    return time_to_target([Source(run) for run in open_runs(tuple(places))])


def halfway(folder: Path, data: str, optimizer: str, time: TimeToTarget) -> tuple[Run, int]:
    """The run with the middle batch at its best rate, up to the target, and its step halfway there."""
    about = DATA[data]
    (best,) = time.batches[time.batches["batch_size"] == about.middle].to_dict("records")
    step, path = max(int(best["steps"]) // 2, 1), folder / f"{data}-{optimizer}"
    epochs = math.ceil(best["samples"] / about.seen)
    if not path.exists():
        call(
            "train", *about.words, "--opt", optimizer, "--lr", best["lr"], "--schedule", "none",
            "--augmentation", "none", "--bs", about.middle, "--micro-batch", about.middle // 4, "--epochs", epochs,
            "--noise", "--record", "norms", "--checkpoint-every", 0, "--checkpoint-steps", step,
            "--keep-checkpoints", 0, "--threads", 1, "--seed", 7, "--run-dir", path,
        )  # fmt: skip
    elif open_run(path).status != "completed":
        call("train", "--resume", path)
    run = open_run(path)
    if not (run.noise(["source"])["source"] == "probe").any():
        call("batch-size", path, "--checkpoint", step, "--samples", min(about.seen, 4000))
    return run, step


def answers(folder: Path, data: str, optimizer: str) -> tuple[BatchSizeAnswers, pd.DataFrame, TimeToTarget]:
    """All three, the noise scale's rows at the moments on record, and the time to the target in full."""
    about, time = DATA[data], swept(folder, data, optimizer)
    run, step = halfway(folder, data, optimizer, time)
    call(
        "branch", run.path, "--checkpoint", step, "--batch-sizes", ",".join(map(str, about.batches)),
        "--samples", about.samples, "--lr-rule", "sqrt", "--seeds", 3,
    )  # fmt: skip
    branched = [Source(each) for each in open_runs((f"{run.path}-branch-*",))]
    noise = noise_scale_of(Source(run))
    found = side_by_side(
        [noise], time, branches_of([Source(run), *branched]), runs=len(time.table), branched=len(branched)
    )
    return found, noise.curve, time


def _scale(rows: pd.DataFrame, place: int) -> str:
    row = rows.iloc[place]
    return interval_text(float(row["simple_batch"]), float(row["low"]), float(row["high"]))


def line(task: str, folder: Path) -> tuple[str, BatchSizeAnswers]:
    """A row of the table in docs/guides/batch_size.md."""
    data, optimizer = task.split("-")
    found, curve, time = answers(folder, data, optimizer)
    recorded, measured = curve[curve["source"] == "training"], curve[curve["source"] == "probe"]
    branches = found.table[found.table["answer"] == "branches"]["told"].iloc[0]
    cells = (
        f"{data}, {optimizer}", f"{time.metric} {time.target:.3g}", _scale(recorded, 0), _scale(measured, -1),
        _scale(recorded, -1), time.b_crit.text, branches, found.verdict.answer,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |", found


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/batch-size"), show_default=True)
@click.option("--task", "tasks", multiple=True, help="Such as digits-sgd; all six by default.")
def main(folder: Path, tasks: tuple[str, ...]) -> None:
    """Train what is missing, and print the table and the doubts of each row."""
    chosen = tasks or tuple(f"{data}-{optimizer}" for data in DATA for optimizer in OPTIMIZERS)
    lines = [line(task, folder) for task in chosen]
    heads = (
        "data, optimizer", "target", "noise scale: first steps", "halfway, on a sample", "at the target",
        "time to target", "branches from halfway", "together",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for text, _ in lines:
        print(text)
    for task, (_, found) in zip(chosen, lines, strict=True):
        print(f"\n{task}: {found.verdict.reason}")
        for doubt in found.doubts:
            print(f"- {doubt}")


if __name__ == "__main__":
    main()
