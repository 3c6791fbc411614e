"""What recording costs: the time of a training step with every layer recorded, over that without.

    python -m benchmarks.recording --batch-size 256 --rounds 12
    python -m benchmarks.recording --model transformer --batch-size 32

Two optimizers of a kind on one model and one batch, the recorder on one of them; their steps alternate in one process,
and the order within a pair changes from pair to pair, so that a machine that grows slower meanwhile slows both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.figures import Figure, interleaved, milliseconds, paired, save
from tvlars_probe import LARS, open_run, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS: dict[str, Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]] = {
    "LARS": lambda params: LARS(params, lr=1.0, weight_decay=5e-4, momentum=0.9),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
}
AIMS = {("LARS", "norms"): 1.01, ("SGD", "norms"): 1.02, ("AdamW", "norms"): 1.02}
WITH_UPDATE_NORM = WITH_NOISE = 1.03
MICRO_BATCHES = 4
FLOORS = {
    "LARS": "its norms are reused; what remains is one pass over the momentum buffer for update_norm and the hooks",
    "SGD": "torch's optimizers leave no norms behind: w and g are read once more before the step",
    "AdamW": "as SGD; update_norm further needs a copy of the weights, in one step of ten for a model of this size",
}


Batch = tuple[torch.Tensor, torch.Tensor]


def images_of(batch_size: int) -> tuple[nn.Module, Batch]:
    """ResNet-18 on images of 32×32."""
    return resnet18(num_classes=10), (torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,)))


class Encoder(nn.Module):
    """Twelve layers of a transformer, 256 wide, that class a row of 128 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False), nn.Linear(256, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        classes: torch.Tensor = self.head(self.layers(self.embedding(tokens)).mean(1))
        return classes


def tokens_of(batch_size: int) -> tuple[nn.Module, Batch]:
    """A transformer on rows of 128 tokens."""
    return Encoder(), (torch.randint(1000, (batch_size, 128)), torch.randint(10, (batch_size,)))


MODELS = {"ResNet-18": images_of, "transformer": tokens_of}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One training step."""
    inputs, labels = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()


def figure_of(kind: str, name: str, detail: Any, batch_size: int, rounds: int) -> Figure:
    """The row of one optimizer at one level of detail."""
    torch.manual_seed(0)
    model, batch = MODELS[kind](batch_size)
    bare, watched = (KINDS[name](model.parameters()) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        with record(model, watched, Path(folder, "run"), detail=detail) as rec:

            def recorded() -> None:
                step(model, watched, batch)
                rec.log(loss=1.0, samples=batch_size, epoch=0)

            seconds = interleaved({"bare": lambda: step(model, bare, batch), "recorded": recorded}, rounds)
        probes = statistics.median(open_run(Path(folder, "run")).steps(["probe_seconds"]).probe_seconds)
    ratios = sorted(a / b for a, b in zip(seconds["recorded"], seconds["bare"], strict=True))
    what = f"step{'' if kind == 'ResNet-18' else f' of a {kind}'} recorded over bare"
    low, _, high = statistics.quantiles(ratios, n=4)
    return Figure(
        what=f"{what}, {name}{', with update_norm' if detail == 'full' else ''}",
        value=paired(seconds, "recorded", "bare"),
        aim=WITH_UPDATE_NORM if detail == "full" else AIMS[name, detail],
        floor=f"{FLOORS[name]}; beside noise from {low:.3f} to {high:.3f} between the quartiles",
        note=f"hooks {probes / statistics.median(seconds['bare']):.2%}; {milliseconds(seconds, 'bare')}",
    )


def noise_figure(name: str, batch_size: int, rounds: int) -> Figure:
    """The row of the gradient's noise: a step of four micro-batches with it over one recorded without it."""
    # Two models: hooks on the parameters of one would be called in the other's steps, too.
    steps: dict[str, Callable[[], None]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for what, noise in (("recorded", False), ("with noise", True)):
            torch.manual_seed(0)
            model, (inputs, labels) = images_of(max(batch_size, 2 * MICRO_BATCHES))  # BatchNorm refuses one sample
            optimizer = KINDS[name](model.parameters())
            rec = stack.enter_context(record(model, optimizer, Path(folder, what), noise=noise))
            pieces = [*zip(inputs.chunk(MICRO_BATCHES), labels.chunk(MICRO_BATCHES), strict=True)]

            def accumulated(
                model: Any = model, optimizer: Any = optimizer, rec: Any = rec, pieces: Any = pieces
            ) -> None:
                optimizer.zero_grad()
                for x, y in pieces:
                    (nn.functional.cross_entropy(model(x), y) / MICRO_BATCHES).backward()
                optimizer.step()
                rec.log(loss=1.0, samples=sum(len(y) for _, y in pieces), epoch=0)

            steps[what] = accumulated
        seconds = interleaved(steps, rounds)
    low, _, high = statistics.quantiles(
        [a / b for a, b in zip(seconds["with noise"], seconds["recorded"], strict=True)], n=4
    )
    return Figure(
        what=f"step of {MICRO_BATCHES} micro-batches recorded with noise over without, {name}",
        value=paired(seconds, "with noise", "recorded"),
        aim=WITH_NOISE,
        floor=f"each micro-batch's gradient is read once; from {low:.3f} to {high:.3f} between the quartiles",
        note=milliseconds(seconds, "recorded"),
    )


@click.command()
@click.option("--batch-size", default=256, show_default=True)
@click.option("--model", type=click.Choice(list(MODELS)), default="ResNet-18", show_default=True)
@click.option("--rounds", default=15, show_default=True, help="Pairs of steps.")
@click.option("--optimizer", type=click.Choice(list(KINDS)), multiple=True, default=list(KINDS), show_default=True)
def main(batch_size: int, model: str, rounds: int, optimizer: tuple[str, ...]) -> None:
    """Print the paired ratios."""
    cases = [(name, detail) for name in optimizer for detail in ("norms", "full")]
    name_of_file = "recording" if model == "ResNet-18" else f"recording-{model}"
    figures = [figure_of(model, name, detail, batch_size, rounds) for name, detail in cases]
    if model == "ResNet-18":
        figures.append(noise_figure(optimizer[0], batch_size, rounds))
    save(name_of_file, figures)


if __name__ == "__main__":
    main()
