"""The step of our optimizers with all norms recorded, over the steps of torch's and timm's.

    python -m benchmarks.steps

Every optimizer has a copy of the model's parameters and random gradients; their steps alternate in one process. Ours
run under a recorder that takes the norms of weights, gradients and directions and ⟨w, g⟩ (not `update_norm`). Peers
record nothing: torch's SGD multi-tensor (on a CPU not its default, which is shown beside it), timm's Lars as it comes,
its Lamb without the gradient clipping that ours hasn't. torch's fused SGD is the floor: it does what follows once the
ratio is known.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torchvision.models import resnet18, resnet50

from benchmarks.environment import peer
from benchmarks.figures import Figure, interleaved, milliseconds, paired, save
from tvlars_probe import LAMB, LARS, TVLARS, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

MODELS: dict[str, Callable[..., nn.Module]] = {"ResNet-18": resnet18, "ResNet-50": resnet50}
SETTINGS: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4}
SGD: dict[str, Any] = {**SETTINGS, "momentum": 0.9}


def optimizers(model: str) -> dict[str, torch.optim.Optimizer]:
    """Ours and the peers, each with parameters of its own."""
    timm = peer("timm.optim")
    kinds: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "LARS": lambda p: LARS(p, **SGD),
        "TVLARS": lambda p: TVLARS(p, **SGD),
        "SGD(foreach)": lambda p: torch.optim.SGD(p, foreach=True, **SGD),
        "SGD": lambda p: torch.optim.SGD(p, **SGD),
        "SGD(fused)": lambda p: torch.optim.SGD(p, fused=True, **SGD),
        "timm Lars": lambda p: timm.Lars(p, **SGD),
    }
    if model == "ResNet-18":
        kinds |= {
            "LAMB": lambda p: LAMB(p, **SETTINGS),
            "timm Lamb": lambda p: timm.Lamb(p, max_grad_norm=None, **SETTINGS),
            "AdamW(fused)": lambda p: torch.optim.AdamW(p, fused=True, **SETTINGS),
        }
    return {name: kind(with_gradients(model)) for name, kind in kinds.items()}


def with_gradients(model: str) -> list[nn.Parameter]:
    """The model's parameters with gradients, each optimizer's its own."""
    torch.manual_seed(0)
    parameters = list(MODELS[model](num_classes=10).parameters())
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    return parameters


def figures_of(model: str, rounds: int) -> list[Figure]:
    """The rows of one model."""
    made = optimizers(model)
    with tempfile.TemporaryDirectory() as folder:
        recorders = [
            record(None, made[name], Path(folder, name), detail="norms")
            for name in ("LARS", "TVLARS", "LAMB")
            if name in made
        ]
        for recorder in recorders:
            recorder.__enter__()
        seconds = interleaved({name: optimizer.step for name, optimizer in made.items()}, rounds)
        for recorder in recorders:
            recorder.__exit__(None, None, None)
    fused = paired(seconds, "SGD(fused)", "SGD(foreach)")
    timm_lars = paired(seconds, "timm Lars", "SGD(foreach)")
    floor = (
        f"w and g are read for q before the update, which alone (SGD(fused)) takes {fused:.2f} of SGD(foreach), timm's "
        f"Lars {timm_lars:.2f}; torch has no kernel that reduces two tensors in one read, so that ‖w‖, ‖g‖ and ⟨w, g⟩ "
        f"are three passes, and each tensor's own q makes four calls a tensor"
    )
    rows = []
    for name in ("LARS", "TVLARS"):
        for other, aim in (("SGD(foreach)", 0.8), ("timm Lars", 0.45)):
            note = milliseconds(seconds, name, other, "SGD", "SGD(fused)")
            value = paired(seconds, name, other)
            rows.append(Figure(what=f"{name} step over {other}, {model}", value=value, aim=aim, floor=floor, note=note))
    if "LAMB" in made:
        note = milliseconds(seconds, "LAMB", "timm Lamb", "AdamW(fused)")
        value = paired(seconds, "LAMB", "timm Lamb")
        floor = f"AdamW(fused), without any norm, takes {paired(seconds, 'AdamW(fused)', 'timm Lamb'):.2f} of timm Lamb"
        rows.append(Figure(what=f"LAMB step over timm Lamb, {model}", value=value, aim=0.45, floor=floor, note=note))
    return rows


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=21, show_default=True, help="Steps of each, in turns.")
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, default=[*MODELS], show_default=True)
def main(rounds: int, models: tuple[str, ...]) -> None:
    """Print the ratios of the models' steps, of the threads that torch takes by itself."""
    save("steps", [figure for model in models for figure in figures_of(model, rounds)])


if __name__ == "__main__":
    main()
