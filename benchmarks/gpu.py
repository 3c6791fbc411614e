"""Ratios on an accelerator: our steps over torch's fused ones and timm's, recorded over bare, product over gradient.

    python -m benchmarks.gpu

It needs neither an installed package nor the network; timm gives the models and two of the peers. Jobs take turns in
one process and are timed by the device's own events; every figure is the median over rounds of a ratio within a round.
Without CUDA it says "skipped". ``--device cpu --small`` runs all of it at a size that measures nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.environment import environment, peer
from benchmarks.figures import Figure, milliseconds, paired, save
from tvlars_probe import LAMB, LARS, TVLARS, record
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DECAY: dict[str, Any] = {"lr": 1e-3, "weight_decay": 5e-4}
MOMENTUM: dict[str, Any] = {**DECAY, "momentum": 0.9}

PEERS = {
    "LARS": ("SGD(fused)", "timm Lars"),
    "TVLARS": ("SGD(fused)", "timm Lars"),
    "LAMB": ("AdamW(fused)", "timm Lamb"),
}

AIMS = {"SGD(fused)": 3.0, "AdamW(fused)": 3.0, "timm Lars": 0.5, "timm Lamb": 0.5}
"""Our step over a fused one without norms, and over timm's."""

PASSES = {"LARS": 7, "TVLARS": 7, "LAMB": 10}
"""Passes over all parameters of the least step: LARS reads w and g twice and its buffer once, and writes w and the
buffer; LAMB reads w, g, m and v and writes m, v and its direction r, then reads w and r and writes w."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the measurement.

    Attributes:
        device: where everything computes.
        models: by name, how each is made.
        images: size of a training batch.
        product_images: size of the batch of a Hessian-vector product.
        side: of an image, in pixels.
        rounds: of each comparison.
    """

    device: torch.device
    models: Mapping[str, Callable[[], nn.Module]]
    images: int
    product_images: int
    side: int
    rounds: int


def setting(device: torch.device, small: bool) -> Setting:
    """The measurement's sizes, or those of a trial."""
    timm = peer("timm")
    if small:
        models = {
            "a small ResNet": lambda: timm.create_model("test_resnet", num_classes=10),
            "a small ViT": lambda: timm.create_model("test_vit", num_classes=10, img_size=32, patch_size=8),
        }
        return Setting(device, models, images=2, product_images=2, side=32, rounds=2)
    models = {
        "ResNet-50": lambda: timm.create_model("resnet50", num_classes=1000),
        "ViT-B/16": lambda: timm.create_model("vit_base_patch16_224", num_classes=1000),
    }
    return Setting(device, models, images=64, product_images=32, side=224, rounds=15)


def turns(jobs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int = 3) -> Any:
    """Seconds of each job in each round, by the device's events; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + warm_up):
        for name in list(jobs)[:: 1 if turn % 2 else -1]:
            spent = _timed(jobs[name], device)
            if turn >= warm_up:
                seconds[name].append(spent)
    return seconds


def _timed(job: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    job()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1e3


def steps(name: str, at: Setting) -> list[Figure]:
    """Optimizer steps alone, with random gradients, each optimizer on parameters of its own."""
    timm = peer("timm.optim")
    kinds: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "LARS": lambda p: LARS(p, **MOMENTUM),
        "TVLARS": lambda p: TVLARS(p, capturable=True, **MOMENTUM),
        "SGD(fused)": lambda p: torch.optim.SGD(p, fused=True, **MOMENTUM),
        "timm Lars": lambda p: timm.Lars(p, **MOMENTUM),
        "LAMB": lambda p: LAMB(p, **DECAY),
        "AdamW(fused)": lambda p: torch.optim.AdamW(p, fused=True, **DECAY),
        "timm Lamb": lambda p: timm.Lamb(p, max_grad_norm=None, **DECAY),
    }
    made = {kind: make(_with_gradients(at.models[name](), at.device)) for kind, make in kinds.items()}
    elements = sum(p.numel() for p in made["LARS"].param_groups[0]["params"])
    copied = torch.empty(elements, device=at.device)
    target = torch.empty_like(copied)
    jobs: dict[str, Callable[[], object]] = {kind: optimizer.step for kind, optimizer in made.items()}
    seconds = turns({**jobs, "copy": lambda: target.copy_(copied)}, at.device, at.rounds)
    rate = 2 * 4 * elements / statistics.median(seconds["copy"])
    figures = []
    for kind, others in PEERS.items():
        figures += [
            Figure(
                what=f"{kind} step over {other}, {name}",
                value=paired(seconds, kind, other),
                aim=AIMS[other],
                floor="norms of w, g and the direction are passes that a fused step hasn't",
                note=milliseconds(seconds, kind, other),
            )
            for other in others
        ]
        moved = PASSES[kind] * 4 * elements / statistics.median(seconds[kind])
        figures.append(
            Figure(
                what=f"{kind}: bytes that a step must move, over the rate of a copy, {name}",
                value=moved / rate,
                aim=0.5,
                sense="at least",
                floor="multi-tensor kernels make more passes than one kernel would",
                note=f"{moved / 1e9:.0f} GB/s of {rate / 1e9:.0f}",
            )
        )
    return figures


def _with_gradients(model: nn.Module, device: torch.device) -> list[nn.Parameter]:
    parameters = list(model.to(device).parameters())
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    return parameters


def recording(name: str, at: Setting) -> list[Figure]:
    """A whole training step in bfloat16 autocast, recorded over bare."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "LARS": lambda params: LARS(params, **MOMENTUM),
        "AdamW(fused)": lambda params: torch.optim.AdamW(params, fused=True, **DECAY),
    }
    return [_recorded_over_bare(name, kind, make, at) for kind, make in kinds.items()]


def _recorded_over_bare(name: str, kind: str, make: Callable[..., torch.optim.Optimizer], at: Setting) -> Figure:
    model = at.models[name]().to(at.device)
    bare, watched = make(model.parameters()), make(model.parameters())
    x, y = _batch(at.images, at)

    def step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(at.device.type, torch.bfloat16):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    with tempfile.TemporaryDirectory() as folder, record(model, watched, Path(folder, "r"), detail="norms") as rec:

        def recorded() -> None:
            rec.log(loss=step(watched), samples=at.images, epoch=0)

        seconds = turns({"bare": lambda: step(bare), "recorded": recorded}, at.device, at.rounds)
    return Figure(
        what=f"training step recorded over bare, {kind}, {name}",
        value=paired(seconds, "recorded", "bare"),
        aim=1.02,
        floor="torch's optimizers leave no norms behind: w and g are read once more",
        note=milliseconds(seconds, "recorded", "bare"),
    )


def product(name: str, at: Setting) -> list[Figure]:
    """A Hessian-vector product over a gradient, on one batch in float32."""
    model = at.models[name]().to(at.device).eval()
    _without_fused_attention(model)
    x, y = _batch(at.product_images, at)
    params = list(model.parameters())
    objective = Objective(model, supervised(cross_entropy), [(x, y)])
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        v = torch.randn(hessian.size, device=at.device)
        out = torch.empty_like(v)
        seconds = turns(
            {
                "gradient": lambda: torch.autograd.grad(objective.term(0), params),
                "product": lambda: hessian.matvec(v, out=out),
            },
            at.device,
            at.rounds,
        )
    return [
        Figure(
            what=f"Hessian-vector product over gradient, {name}",
            value=paired(seconds, "product", "gradient"),
            aim=3.0,
            floor="the graph of a gradient is differentiated once more (theory: 2)",
            note=milliseconds(seconds, "product", "gradient"),
        )
    ]


def _without_fused_attention(model: nn.Module) -> None:
    """Fused attention has no second derivative: take the plain one."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _batch(size: int, at: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(size, 3, at.side, at.side, device=at.device)
    return x, torch.randint(10, (size,), device=at.device)


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Small models and few rounds: a trial that measures nothing.")
def main(device: str, small: bool) -> None:
    """Print one table, and write it to benchmarks/results/gpu.json."""
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        click.echo("skipped: no CUDA device")
        return
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    click.echo(f"{card}; {environment()}")
    at, figures, failed = setting(where, small), list[Figure](), []
    for name in at.models:
        for part in (steps, recording, product):
            # The device is lent for minutes: one part that fails must not cost the others' figures.
            try:
                figures += part(name, at)
            except Exception as error:  # whatever it is: it is told at the end
                failed.append(f"{part.__name__}, {name}: {type(error).__name__}: {error}")
            if where.type == "cuda":
                torch.cuda.empty_cache()
    save("gpu", figures, about=card)
    for line in failed:
        click.echo(f"failed: {line}", err=True)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
