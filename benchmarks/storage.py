"""Rows of the table ``layers``: bytes and time to write one, time to read one layer's history out of ten million.

    python -m benchmarks.storage

The rows are those of a model of 100 tensors whose norms wander as norms do: a random walk of 1 % a step, so that all
digits are filled. Seven figures a row, as LARS gives them. TensorBoard writes five scalars of a hundredth of a percent
of the rows in the same process.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.progress import track

from benchmarks.figures import Figure, save
from tvlars_probe import open_run
from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.rows.buffer import Drained, StepRow
from tvlars_probe.probes.rows.table_columns import layer_columns
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIGURES = ("weight_norm", "grad_norm", "weight_grad_dot", "direction_norm", "update_norm", "trust_ratio", "lr")
NULLS = frozenset({"adam_norm", "weight_adam_dot", "phi"})
TENSORS = 100
CHUNK = 5_000


def names_of(tensors: int) -> list[str]:
    """Names as models have them."""
    return [f"layer{i // 10}.{i % 10}.conv.weight" for i in range(tensors)]


NAMES = names_of(TENSORS)


def chunk_of_steps(generator: np.random.Generator, steps: int, tensors: int) -> Drained:
    """Recorded steps as they leave the device."""
    walk = np.exp(np.cumsum(generator.normal(0, 0.01, (steps, len(COLUMNS), tensors)), axis=0))
    active = np.ones(tensors, bool)
    rows = [StepRow(True, active, ~active, lr, phase="train") for lr in generator.lognormal(0, 0.1, (steps, tensors))]
    clips = np.full((steps, 2), np.nan)
    return Drained(rows, walk, np.ones(steps), clips, np.zeros((steps, 1), bool), (0, tensors))


def write(path: Path, rows: int, tensors: int = TENSORS) -> tuple[float, float]:
    """Write a finished run; seconds while it ran, and to put it in order at its end."""
    generator = np.random.default_rng(0)
    journal = Journal.create(path, Manifest(run_id="bench"))
    journal.begin_segment(0)
    spent, steps, names = 0.0, CHUNK * TENSORS // tensors, names_of(tensors)
    for first in track(range(0, rows // tensors, steps), "Writing"):
        drained = chunk_of_steps(generator, steps, tensors)
        start = time.perf_counter()
        journal.append("layers", layer_columns(drained, first, names, [NULLS] * tensors))
        journal.flush(first + steps)
        spent += time.perf_counter() - start
    start = time.perf_counter()
    journal.finish("completed")
    return spent, time.perf_counter() - start


def with_tensorboard(path: Path, steps: int = 20) -> tuple[float, float]:
    """Seconds and bytes per row of five scalars."""
    from torch.utils.tensorboard import SummaryWriter

    values: NDArray[np.float64] = np.random.default_rng(0).random((steps, TENSORS, 5))
    start = time.perf_counter()
    with SummaryWriter(str(path)) as writer:
        for step in range(steps):
            for k, name in enumerate(NAMES):
                for j, figure in enumerate(FIGURES[:5]):
                    writer.add_scalar(f"{name}/{figure}", values[step, k, j], step)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in path.iterdir())
    return seconds / (steps * TENSORS), size / (steps * TENSORS)


@click.command()
@click.option("--rows", default=10_000_000, show_default=True)
def main(rows: int) -> None:
    """Print bytes and times."""
    with tempfile.TemporaryDirectory() as folder:
        peer_seconds, peer_bytes = with_tensorboard(Path(folder, "tensorboard"))
        running, settling = write(Path(folder, "run"), rows)
        size = sum(part.stat().st_size for part in Path(folder, "run/trace/layers").glob("part-*"))
        open_run(Path(folder, "run")).layers(["step", "trust_ratio"], parameters=[NAMES[7]])
        histories = []
        for name in NAMES[::20]:
            start = time.perf_counter()
            history = open_run(Path(folder, "run")).layers(["step", "trust_ratio"], parameters=[name])
            histories.append(time.perf_counter() - start)
            assert len(history) == rows // TENSORS
    write_note = f"{running / rows * 1e6:.2f} while running, {settling / rows * 1e6:.2f} at its end"
    save(
        "storage",
        [
            Figure(
                what="bytes per row of seven figures",
                value=size / rows,
                aim=22,
                unit="B",
                floor="24 bits of mantissa a figure don't compress",
                note=f"TensorBoard {peer_bytes:.0f} for five",
            ),
            Figure(
                what="time per row to record and write",
                value=(running + settling) / rows * 1e6,
                aim=2,
                unit="µs",
                floor="encoding and compression of parquet, twice: as the rows come and in order at the end",
                note=f"{write_note}; TensorBoard {peer_seconds * 1e6:.0f} for five",
            ),
            Figure(
                what=f"one layer's history of {rows:,} rows",
                value=float(np.median(histories)),
                aim=0.3,
                unit="s",
                floor="footers of all parts are read",
            ),
        ],
    )


if __name__ == "__main__":
    main()
