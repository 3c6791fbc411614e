"""What recording costs: the time of a training step of ResNet-18 with every layer recorded, over that without.

    python -m benchmarks.recording --batch-size 256 --rounds 12

Steps with and without the recorder alternate in pairs in one process, on one model, one optimizer and one batch, and
the order within a pair changes from pair to pair, so that a machine that grows slower meanwhile slows both alike.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from rich.progress import track
from torch import nn
from torchvision.models import resnet18

from benchmarks.environment import environment
from tvlars_probe import LARS, open_run, record

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    """One training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start


@click.command()
@click.option("--batch-size", default=256, show_default=True)
@click.option("--side", default=32, show_default=True, help="Pixels of an image's side.")
@click.option("--rounds", default=12, show_default=True, help="Pairs of steps.")
@click.option("--optimizer", type=click.Choice(["lars", "sgd", "adamw"]), default="lars", show_default=True)
def main(batch_size: int, side: int, rounds: int, optimizer: str) -> None:
    """Print the paired ratio."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "lars": lambda: LARS(model.parameters(), lr=1.0, weight_decay=5e-4, momentum=0.9),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    opt = kinds[optimizer]()
    images, labels = torch.randn(batch_size, 3, side, side), torch.randint(10, (batch_size,))
    for _ in range(2):
        seconds(model, opt, images, labels)
    bare, recorded, probes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in track(range(rounds), "Timing pairs of steps"):
            for is_recorded in (pair % 2 == 0, pair % 2 == 1):
                if not is_recorded:
                    bare.append(seconds(model, opt, images, labels))
                    continue
                with record(model, opt, Path(folder, str(pair))) as rec:
                    start = time.perf_counter()
                    seconds(model, opt, images, labels)
                    rec.log(loss=1.0, samples=batch_size, epoch=0)
                    recorded.append(time.perf_counter() - start)
                probes.append(float(open_run(Path(folder, str(pair))).steps(["probe_seconds"]).probe_seconds.iloc[0]))
    ratios = [with_it / without for with_it, without in zip(recorded, bare, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    print(environment())
    print(f"ResNet-18, batch {batch_size}, {side}x{side}, {type(opt).__name__}, every layer in every step")
    print(f"step without recording  {statistics.median(bare):.3f} s (median of {rounds})")
    print(f"recorded / bare         {statistics.median(ratios):.4f} (quartiles {quartiles[0]:.4f}, {quartiles[2]:.4f})")
    print(f"time inside the hooks   {statistics.median(probes) / statistics.median(bare):.2%} of a step")


if __name__ == "__main__":
    main()
