"""A run's configuration, data, model and optimizer at one of its checkpoints, for commands that compute with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tvlars_probe.data.registry import SPLITS
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints import restoring
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.evaluation import Precision
from tvlars_probe.runners.phases.phase import Phase, phase_named
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.data.images import ImageData, TensorImages

DEFAULT_SAMPLES = 1000
"""Samples on which the loss and its curvature are computed where the user gives no number."""


@dataclass(frozen=True, kw_only=True)
class RestoredState:
    """The state of a run after some updates.

    Attributes:
        step: updates made so far, so that this is the state before update ``step``.
        phase: the phase that the run was in.
        model: the model with the weights and buffers of that state.
        optimizer: its optimizer in that state.
        scaled_lr: lr × trust_ratio of each parameter in the last update, by name; empty before the first.
    """

    step: int
    phase: Phase
    model: nn.Module
    optimizer: Optimizer
    scaled_lr: dict[str, float]


_BY_MODEL = (
    "Name its model by --model package.module:function, or call tvlars_probe.sharpness(model, loss_fn, data) in your "
    "own code"
)


def load_config(run: Path, *, remedy: str = _BY_MODEL) -> TrainConfig:
    """The configuration of a run made by ``train``.

    Args:
        run: the run directory.
        remedy: what to do about a run that has no such configuration; ends the error message.

    Raises:
        UserError: the run was recorded from another loop.
    """
    stored = Manifest.load(run).config
    try:
        return TrainConfig.from_dict(stored).without_download()
    except UserError as error:
        raise UserError(f"{run}: {error}. {remedy}") from None


def choose_checkpoints(run: Path, which: str) -> list[Path]:
    """The checkpoints that ``which`` names: last, best, all, or a step.

    Raises:
        RunDirectoryError: the run has no checkpoints, or no best one.
        UserError: there is no checkpoint of that name.
    """
    found = _checkpoints(run)
    return list(found.values()) if which == "all" else [_chosen(run, which, found, "last, best, all")]


def choose_checkpoint(run: Path, which: str) -> Path:
    """The one checkpoint that ``which`` names: last, best, or a step.

    Raises:
        RunDirectoryError: the run has no checkpoints, or no best one.
        UserError: there is no checkpoint of that name.
    """
    return _chosen(run, which, _checkpoints(run), "last, best")


def _checkpoints(run: Path) -> dict[int, Path]:
    found = checkpoints.list_checkpoints(run)
    if not found:
        raise RunDirectoryError(f"{run} has no checkpoints: train writes them at the end and every --checkpoint-every")
    return found


def _chosen(run: Path, which: str, found: dict[int, Path], names: str) -> Path:
    if which == "last":
        return found[max(found)]
    if which == "best":
        best = Manifest.load(run).best
        if not best or best["step"] not in found:
            raise RunDirectoryError(f"{run} has no best checkpoint (there are steps {_listed(found)})")
        return found[best["step"]]
    if which.isdecimal() and int(which) in found:
        return found[int(which)]
    what = "it takes one checkpoint" if which == "all" else "there is none"
    raise UserError(f"--checkpoint {which}: {what} (allowed: {names}, or a step of {_listed(found)})")


def _listed(steps: dict[int, Path]) -> str:
    return ", ".join(str(step) for step in steps)


def part_of(data: ImageData, split: str) -> TensorImages:
    """A part of the data by its name, one of `tvlars_probe.data.registry.SPLITS`.

    Raises:
        UserError: there is no such part.
    """
    parts: dict[str, TensorImages | None] = {name: getattr(data, name) for name in SPLITS}
    part = parts.get(split)
    if part is None:
        there = ", ".join(name for name, images in parts.items() if images is not None)
        raise UserError(f"--split {split}: the run has no such part of the data (it has {there})")
    return part


def own_dtype(config: TrainConfig) -> torch.dtype:
    """The type of a run's weights. A narrower one would round them, and with them what is computed."""
    return Precision(config.precision, torch.device("cpu")).dtype


def restore_state(
    config: TrainConfig, data: ImageData, checkpoint: Path, *, device: torch.device, dtype: torch.dtype
) -> RestoredState:
    """Build the model and optimizer of a run, and put the state of a checkpoint into them.

    Args:
        config: configuration of the run.
        data: its data, on whose channels and classes the model's shape depends.
        checkpoint: a file in the run's ``checkpoints/``.
        device: where to put the model.
        dtype: type of its weights.

    Raises:
        RunDirectoryError: the checkpoint is damaged, or another model's.
    """
    stored = checkpoints.load(checkpoint)
    phase = phase_named(stored["phase"], config)
    # The weights drawn here are replaced; the caller's random generator stays where it was.
    with torch.random.fork_rng(devices=()):
        model = phase.build_model(data)
    # Before the weights are there: on their way through a float32 model those of a float64 run would lose digits.
    model.to(device, dtype)
    restoring.restore_model(model, stored, checkpoint)
    # Built once the model has its device and type, which torch gives to the optimizer's state on loading.
    optimizer = phase.build_optimizer(model)
    restoring.restore_optimizer(optimizer, stored, checkpoint)
    return RestoredState(
        step=stored["step"], phase=phase, model=model, optimizer=optimizer, scaled_lr=stored["recorder"]["rates"]
    )
