"""The probe of gradient noise: its time over a batch's own gradient, and its memory over its budget.

    python -m benchmarks.noise

Samples' gradients over the forward and backward pass of the same batch, in turns in one process: squares and sum of all
gradients (``gradients``), and the whole measurement with its errors, the copy of the model and a trial on two samples
(``whole``). Then, in a process for each budget, the peak of resident memory above what was there before.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.figures import Figure, interleaved, milliseconds, paired, save
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.objective import supervised
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.noise.cutting import objective_of
from tvlars_probe.noise.gradients import ByLayers
from tvlars_probe.noise.measuring import noise_of

SHAPES = {"cnn": (1, 28, 28), "resnet18": (3, 32, 32)}
"""Of a sample, by model; BatchNorm is in eval mode."""

MIB = 1 << 20


def case(name: str, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in evaluation mode and its data."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    model = ModelConfig(name=name).build(channels=shape[0], num_classes=10).eval()
    return model, torch.randn(samples, *shape), torch.randint(10, (samples,))


def times(name: str, batch: int, rounds: int) -> list[Figure]:
    """The ratios of one model."""
    model, x, y = case(name, batch)
    named = dict(model.named_parameters())
    objective = objective_of(model, supervised(F.cross_entropy), (x, y), shards=Ranks())
    with objective.held():  # tests the loss, once
        pass

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    def gradients() -> None:
        with torch.enable_grad():
            found = ByLayers(objective, named, 1 / batch).gradients((x, y))
            for factor in found.factors.values():
                factor.squares()

    def whole() -> None:
        noise_of(objective, named, shards=Ranks())

    seconds = interleaved({"plain": plain, "gradients": gradients, "whole": whole}, rounds)
    note = milliseconds(seconds, "plain", "gradients", "whole")
    ratios = {over: paired(seconds, over, "plain") for over in ("gradients", "whole")}
    return [
        Figure(
            what=f"gradients of {batch} samples / their batch's, {name}", value=ratios["gradients"], aim=2.0, note=note
        ),
        Figure(what=f"the whole measurement / the batch's gradient, {name}", value=ratios["whole"], aim=2.5),
    ]


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(name: str, samples: int, budget: int) -> int:
    """Bytes that a measurement takes at its peak, beyond what the process held before."""
    model, x, y = case(name, samples)
    # Libraries and their buffers, which a process has once, don't count.
    F.cross_entropy(model(x[:2]), y[:2]).backward()
    model.zero_grad()
    objective = objective_of(model, supervised(F.cross_entropy), (x, y), shards=Ranks())
    with objective.held():
        pass
    before, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        noise_of(objective, dict(model.named_parameters()), shards=Ranks(), memory_budget=budget)
    finally:
        done.set()
        watcher.join()
    return highest - before


@click.command()
@click.option("--model", "models", multiple=True, default=tuple(SHAPES), help="Which models.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--rounds", default=11, show_default=True)
@click.option("--samples", default=512, show_default=True, help="Of the measurements of memory.")
@click.option("--budget", "budgets", multiple=True, type=int, default=(300, 600, 1200), help="In MiB.")
@click.option("--measure", type=int, hidden=True, help="Print the peak of one budget in MiB, in this process.")
def main(
    models: tuple[str, ...], batch_size: int, rounds: int, samples: int, budgets: tuple[int, ...], measure: int | None
) -> None:
    """Print each ratio beside its aim."""
    if measure is not None:
        print(peak(models[0], samples, measure * MIB) / MIB)
        return
    figures = [figure for name in models for figure in times(name, batch_size, rounds)]
    for budget in budgets:
        words = ["--model", models[-1], "--samples", str(samples), "--measure", str(budget)]
        command = [sys.executable, "-m", "benchmarks.noise", *words]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        used = float(told.stdout)
        what = f"peak memory / budget of {budget} MiB, {models[-1]}, {samples} samples"
        figures.append(Figure(what=what, value=used / budget, aim=1.1, note=f"{used:.0f} MiB"))
    save("noise", figures)


if __name__ == "__main__":
    main()
