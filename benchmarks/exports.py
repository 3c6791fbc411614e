"""What an export costs on top of recording: recorded steps with an export, over recorded ones without.

    python -m benchmarks.exports --rounds 12

Two recorders of one model and batch, the export on one of them, take turns. A turn is the steps of 5 seconds, the
shortest time between two flushes, and a flush. With an export it ends when the tracker has all of the flush: whatever
the export's thread takes from the training, or would take where no core is free, is in it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from benchmarks.figures import Figure, interleaved, milliseconds, paired, save
from benchmarks.recording import KINDS, MODELS, step
from tvlars_probe import Export, record
from tvlars_probe.traces.writer import FIRST_FLUSH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from benchmarks.recording import Batch
    from tvlars_probe.exports.exporter import Alert, ExportedRun, Exporter, StepScalars

AIM = 1.01
FLOOR = "a flush takes some tens of milliseconds in a thread of its own, counted here as if the training waited"


class Null:
    """Takes everything and does nothing with it: what remains is the queue, the thread and the selection."""

    def begin(self, run: ExportedRun) -> None: ...

    def scalars(self, point: StepScalars) -> None: ...

    def alert(self, alert: Alert) -> None: ...

    def flush(self) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self, status: str) -> None: ...


class Told:
    """Hands everything on, tells when a flush has arrived, and takes the processor time of the thread for each."""

    def __init__(self, inner: Exporter) -> None:
        self._inner = inner
        self.begin, self.alert, self.note, self.end = inner.begin, inner.alert, inner.note, inner.end
        self._last, self._flushed, self._arrived = -1, -1, threading.Condition()
        self.spent: list[float] = []
        self._spent_before = 0.0

    def scalars(self, point: StepScalars) -> None:
        self._inner.scalars(point)
        self._last = point.step

    def flush(self) -> None:
        self._inner.flush()
        spent = time.thread_time()
        self.spent.append(spent - self._spent_before)
        self._spent_before = spent
        with self._arrived:
            self._flushed = self._last
            self._arrived.notify()

    def wait_for(self, step: int) -> None:
        """Wait until a step has arrived, which is the last of a flush."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._flushed >= step, timeout=60)


def null() -> Exporter:
    """The exporter that does nothing."""
    return Null()


def tensorboard() -> Exporter:
    """TensorBoard's own writer."""
    return Export("tensorboard").open()


def steps_in(seconds: float, model: nn.Module, batch: Batch) -> int:
    """How many steps take so long."""
    optimizer = KINDS["LARS"](model.parameters())
    taken = interleaved({"step": lambda: step(model, optimizer, batch)}, 3)["step"]
    return math.ceil(seconds / statistics.median(taken))


def figures_of(
    model_name: str, name: str, make: Callable[[], Exporter], batch_size: int, length: float, rounds: int
) -> list[Figure]:
    """The rows of one exporter on one model: by the clock, and by the processor, which other work leaves alone."""
    torch.manual_seed(0)
    model, batch = MODELS[model_name](batch_size)
    exporter, steps = Told(make()), steps_in(length, model, batch)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        jobs: dict[str, Callable[[], None]] = {}
        for label, export in (("recorded", []), ("exported", [exporter])):
            optimizer = KINDS["LARS"](model.parameters())
            rec = stack.enter_context(record(model, optimizer, Path(folder, label), export=export))

            def turn(rec=rec, optimizer=optimizer, export=export) -> None:  # type: ignore[no-untyped-def]
                for _ in range(steps):
                    step(model, optimizer, batch)
                    rec.log(loss=1.0, samples=batch_size, epoch=0)
                rec.flush()
                for one in export:
                    one.wait_for(rec.step - 1)

            jobs[label] = turn
        seconds = interleaved(jobs, rounds)
    pairs = [*zip(seconds["exported"], seconds["recorded"], strict=True)]
    low, _, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    # The first flush holds the exporter's beginning, too.
    a_flush = statistics.median(exporter.spent[1:])
    what = f"{steps} recorded steps of {model_name} with an export over those without, {name}"
    return [
        Figure(
            what=what,
            value=paired(seconds, "exported", "recorded"),
            aim=AIM,
            floor=f"{FLOOR}; beside noise from {low:.3f} to {high:.3f} between the quartiles",
            note=f"{milliseconds(seconds, 'recorded')}; quartiles {low:.3f} to {high:.3f}",
        ),
        Figure(
            what=f"{what}, by the export's processor time",
            value=1 + a_flush / length,
            aim=AIM,
            note=f"{1e3 * a_flush:.1f} ms a flush, over the {length:g} s between flushes",
        ),
    ]


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), multiple=True, default=list(MODELS), show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--seconds", default=FIRST_FLUSH_SECONDS, show_default=True, help="From flush to flush.")
@click.option("--rounds", default=12, show_default=True, help="Pairs of turns.")
def main(model: tuple[str, ...], batch_size: int, seconds: float, rounds: int) -> None:
    """Print the paired ratios."""
    exporters = {"an exporter that does nothing": null, "TensorBoard": tensorboard}
    cases = [(kind, name, make) for kind in model for name, make in exporters.items()]
    save("exports", [row for case in cases for row in figures_of(*case, batch_size, seconds, rounds)])


if __name__ == "__main__":
    main()
