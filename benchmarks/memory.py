"""Peak memory of a training run as it goes on: recorded, checkpointed, flushed and merged all the while.

    python -m benchmarks.memory --steps 20000

One run; after each epoch the peak of the process so far. A small model with frequent flushes, so that what a recorder
might keep per step, flush or epoch would show.
"""

from __future__ import annotations

import math
import resource
import tempfile
from pathlib import Path

import click
import torch

from benchmarks.environment import environment
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.loop import Training
from tvlars_probe.runners.train import train
from tvlars_probe.runs import open_run
from tvlars_probe.traces import writer

BATCH, STEPS_PER_EPOCH = 4, 250


def peaks(steps: int, run: Path, flush_seconds: float = 0.5, flush_rows: int | None = None) -> dict[int, float]:
    """Peak resident memory in MiB after so many updates.

    Args:
        steps: updates.
        run: the run's folder.
        flush_seconds: time between two flushes; the first merge of parts comes sooner on a slower machine.
        flush_rows: rows between two flushes, whatever the time: merges come at the same steps on every machine.
    """
    config = TrainConfig(
        data=DataConfig(limit=BATCH * STEPS_PER_EPOCH),
        optimizer=OptimizerConfig(name="lars", lr=0.1),
        place=PlaceConfig(devices=("cpu",), threads=1),
        recording=RecordConfig(train_eval_samples=16, checkpoint_steps=1000),
        batch_size=BATCH,
        epochs=-(-steps // STEPS_PER_EPOCH),
    )
    found: dict[int, float] = {}
    end_epoch = Training.end_epoch

    def measured(self: Training, epoch: int, *rest: object) -> None:
        end_epoch(self, epoch, *rest)  # type: ignore[arg-type]
        found[(epoch + 1) * STEPS_PER_EPOCH] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    Training.end_epoch = measured  # type: ignore[assignment, method-assign]
    writer.FIRST_FLUSH_SECONDS = writer.LAST_FLUSH_SECONDS = math.inf if flush_rows else flush_seconds
    writer.MOST_PENDING_ROWS = flush_rows or writer.MOST_PENDING_ROWS
    try:
        train(config, run, quiet=True)
    finally:
        Training.end_epoch = end_epoch  # type: ignore[method-assign]
    return found


@click.command()
@click.option("--steps", default=20_000, show_default=True)
@click.option("--flush-seconds", default=0.5, show_default=True)
@click.option("--flush-rows", type=int, help="Flush at so many rows, whatever the time.")
def main(steps: int, flush_seconds: float, flush_rows: int | None) -> None:
    """Print the peak at some steps, and its growth after the first tenth."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = peaks(steps, Path(folder, "run"), flush_seconds, flush_rows)
        rows = len(open_run(Path(folder, "run")).layers(["step"]))
    print(environment())
    print(f"{max(found):,} steps, {rows:,} rows of layers")
    for step in sorted({STEPS_PER_EPOCH, *(share * max(found) // 10 for share in (1, 2, 5, 10))} & found.keys()):
        print(f"after {step:6,} steps: peak {found[step]:.1f} MiB")
    first = min(step for step in found if step >= steps / 10)
    print(f"growth from step {first:,} on: {found[max(found)] - found[first]:.1f} MiB")


if __name__ == "__main__":
    main()
