"""Images a second of our training loop, recorded, over those of a bare PyTorch loop.

    python -m benchmarks.training

The same ResNet-18, optimizer (torch's SGD, then LARS) and batches of 32×32 images; updates alternate in one process.
Ours cuts, augments, schedules, counts and records; the bare loop gets its batches ready made.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from itertools import chain
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.figures import Figure, interleaved, milliseconds, paired, save
from tvlars_probe import LARS, record
from tvlars_probe.collectives import Ranks
from tvlars_probe.data.images import TensorImages
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.running import build_trainings

FLOORS = {
    "sgd": "augmentation, and norms, which torch's optimizers leave none behind; the bare loop does neither",
    "lars": "augmentation, which the bare loop doesn't do",
}


def figure(name: str, batch_size: int, rounds: int) -> Figure:
    """The row of one optimizer."""
    config = TrainConfig(
        data=DataConfig(name="digits", augmentation="standard"),
        model=ModelConfig(name="resnet18"),
        optimizer=OptimizerConfig(name=name, lr=0.01),
        batch_size=batch_size,
    )
    (training,) = build_trainings(Ranks(torch.device("cpu")), config, config.data.load())
    small = torch.rand(len(training.data.train), 1, 8, 8)
    pictures = (interpolate(small, size=32, mode="bilinear") * 255).to(torch.uint8)
    labels = torch.randint(10, (len(pictures),))
    images = TensorImages(pictures, labels, 255.0, (0.5,), (0.25,))
    replica = training.replica = dataclasses.replace(training.replica, images=images)
    model = copy.deepcopy(training.model)
    kind = {"sgd": torch.optim.SGD, "lars": LARS}[name]
    optimizer = kind(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    full = [share for share in training.plan.epoch(0) if share.size == batch_size]
    ready = [replica.augment(images, share.pieces[0], 0, torch.float32) for share in full]
    epochs = (share for epoch in range(10_000) for share in training.plan.epoch(epoch) if share.size == batch_size)
    shares, batches = iter(epochs), chain.from_iterable(ready for _ in range(10_000))
    tally = training.phase.tally(replica.ranks.device)

    def bare() -> None:
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder, record(training.model, training.optimizer, Path(folder, "r")) as rec:

        def ours() -> None:
            loss = training.update(next(shares), 0, tally)
            rec.log(loss=loss, samples=batch_size, epoch=0)

        seconds = interleaved({"bare loop": bare, "ours": ours}, rounds)
    return Figure(
        what=f"training loop's images/s over a bare loop's, {kind.__name__}",
        value=paired(seconds, "bare loop", "ours"),
        aim=0.98,
        sense="at least",
        floor=FLOORS[name],
        note=milliseconds(seconds, "bare loop", "ours"),
    )


@click.command()
@click.option("--batch-size", default=256, show_default=True)
@click.option("--rounds", default=31, show_default=True)
def main(batch_size: int, rounds: int) -> None:
    """Print the ratios."""
    save("training", [figure(name, batch_size, rounds) for name in FLOORS])


if __name__ == "__main__":
    main()
