"""What recording costs in other people's trainers: the time inside our hooks over the rest of a training step.

    python -m benchmarks.trainers
    python -m benchmarks.trainers --model transformer --batch-size 32 --trainer lightning

It needs the extra ``integrations``. A trainer's loop can't be made to alternate recorded and bare steps, as
`benchmarks.recording` does. So every call by which a trainer enters this package is timed: the optimizer's hooks, the
model's, the callbacks, and ``log``, with the flushes that they make. What a call costs its caller beside its own time,
such as a colder cache, isn't in it.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import click
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset

from benchmarks.figures import Figure, save
from benchmarks.recording import AIMS, KINDS, MODELS, WITH_UPDATE_NORM
from tests.integrations.trainers import TRAINERS, Job
from tvlars_probe.integrations import LightningProbe, TrainerProbe
from tvlars_probe.integrations.forward_passes import ForwardPasses
from tvlars_probe.probes.recorder import Recorder
from tvlars_probe.probes.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTRANCES: dict[type, tuple[str, ...]] = {
    Recording: ("before_update", "after_update"),
    Recorder: ("log",),
    ForwardPasses: ("_seen",),
    **{
        probe: tuple(name for name in vars(probe) if name.startswith("on_")) for probe in (TrainerProbe, LightningProbe)
    },
}
"""The methods by which a loop enters this package between its first step and its last."""
WARM_UP = 3
"""Steps that aren't measured."""


class Inside:
    """Adds up the time in calls of some methods; a call made from within another isn't counted twice.

    Attributes:
        seconds: the sum so far.
        marks: for each ``log`` so far, when it ended and the sum then.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.marks: list[tuple[float, float]] = []
        self._depth = 0

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, with its time added up."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            start, self._depth = time.perf_counter(), self._depth + 1
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                end = time.perf_counter()
                if not self._depth:
                    self.seconds += end - start
                if method.__name__ == "log":
                    # Within a callback its own time alone counts so far: at each mark alike.
                    self.marks.append((end, self.seconds + (end - start if self._depth else 0.0)))

        return call

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time the `ENTRANCES` inside."""
        with contextlib.ExitStack() as stack:
            for owner, names in ENTRANCES.items():
                for name in names:
                    method = inspect.getattr_static(owner, name)
                    stack.enter_context(mock.patch.object(owner, name, self.timed(method)))
            yield

    def share(self) -> tuple[float, float]:
        """Seconds inside over the seconds outside, and the seconds of a step, after the warm-up."""
        (first, inside_first), (last, inside_last) = self.marks[WARM_UP - 1], self.marks[-1]
        inside, steps = inside_last - inside_first, len(self.marks) - WARM_UP
        outside = last - first - inside
        return inside / outside, (last - first) / steps


class WithLoss(nn.Module):
    """A model that returns its loss, as transformers' do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Repeated(Dataset[dict[str, torch.Tensor]]):
    """One batch, again and again: no time goes into making another."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> None:
        self.x, self.labels = batch
        self.steps = steps

    def __len__(self) -> int:
        return len(self.x) * self.steps

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        place = index % len(self.x)
        return {"x": self.x[place], "labels": self.labels[place]}


def figure_of(trainer: str, model: str, kind: str, detail: str, batch_size: int, steps: int) -> Figure:
    """The row of one optimizer in one trainer at one level of detail."""
    torch.manual_seed(0)
    net, batch = MODELS[model](batch_size)
    inside = Inside()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            path=Path(folder, "run"),
            folder=Path(folder),
            optimizer=KINDS[kind],
            size=batch_size,
            net=lambda: WithLoss(net),
            data=Repeated(batch, steps + WARM_UP),
            options={"detail": detail, "total_steps": steps + WARM_UP},
        )
        with inside.watching():
            TRAINERS[trainer](job)
    share, seconds = inside.share()
    return Figure(
        what=f"step of a {model} in {trainer}, 1 + hooks, {kind}{', with update_norm' if detail == 'full' else ''}",
        value=1 + share,
        aim=WITH_UPDATE_NORM if detail == "full" else AIMS[kind, detail],
        floor="see benchmarks.recording",
        note=f"a step {seconds * 1e3:.0f} ms",
    )


@click.command()
@click.option("--batch-size", default=256, show_default=True)
@click.option("--model", type=click.Choice(list(MODELS)), default="ResNet-18", show_default=True)
@click.option("--steps", default=12, show_default=True, help=f"Measured steps, after {WARM_UP} that aren't.")
@click.option("--trainer", type=click.Choice(list(TRAINERS)), multiple=True, default=list(TRAINERS), show_default=True)
@click.option("--optimizer", type=click.Choice(list(KINDS)), multiple=True, default=["LARS", "SGD"], show_default=True)
def main(batch_size: int, model: str, steps: int, trainer: tuple[str, ...], optimizer: tuple[str, ...]) -> None:
    """Print the shares."""
    # The first flush of a process imports what writes parquet, which takes a second: once, and no part of a step.
    figure_of("plain", "transformer", "SGD", "norms", batch_size=2, steps=1)
    cases = [(name, kind, detail) for name in trainer for kind in optimizer for detail in ("norms", "full")]
    with click.progressbar(cases, label="measuring", item_show_func=lambda case: " ".join(case or ())) as bar:
        figures = [figure_of(name, model, kind, detail, batch_size, steps) for name, kind, detail in bar]
    save("trainers" if model == "ResNet-18" else f"trainers-{model}", figures)


if __name__ == "__main__":
    main()
