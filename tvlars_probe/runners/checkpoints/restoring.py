"""A checkpoint's state, put back into a model, an optimizer, a schedule and the random generators."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.optimizers.description import MOVING, updates_made
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints.files import MOVE_AWAY, refuse_for_this_run
from tvlars_probe.traces.plain_types import fits, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.optimizers.schedules import Schedule


def restore_model(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights and buffers into ``model``.

    Raises:
        RunDirectoryError: they are another model's.
    """
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise RunDirectoryError(f"{path} holds another model's weights: {reason or error}; {MOVE_AWAY}") from None


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's optimizer state into ``optimizer``.

    Raises:
        RunDirectoryError: it is another optimizer's.
    """
    try:
        refuse_for_this_run(path, contents.unlike_optimizer(optimizer, state["optimizer"]))
        before = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for mine, loaded in zip(before, optimizer.param_groups, strict=True):
            refuse_for_this_run(path, contents.unlike_options(mine, loaded, moving=MOVING))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        refuse_for_this_run(path, [f"its optimizer's state is another's: {error}"])


def restore_schedule(scheduler: LambdaLR, schedule: Schedule, state: dict[str, Any], made: int, path: Path) -> None:
    """Put the schedule where it was after ``made`` updates of the phase.

    Raises:
        RunDirectoryError: the checkpoint's is elsewhere, or its learning rates aren't those of the schedule.
    """
    refuse_for_this_run(path, _off_schedule(scheduler, schedule, state, made))


def _off_schedule(scheduler: LambdaLR, schedule: Schedule, state: dict[str, Any], made: int) -> Iterator[str]:
    saved, groups = state["scheduler"].get("last_epoch"), scheduler.optimizer.param_groups
    if not fits(saved, int) or saved != made:
        yield f"its schedule is in step {shown(saved)}, not {made}"
        return
    lrs = [group["lr"] for group in groups]
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": made, "_step_count": made + 1, "_last_lr": lrs})
    for group, base in zip(groups, scheduler.base_lrs, strict=True):
        lr, due = group["lr"], base * schedule.factor(made)
        if not math.isclose(lr, due, rel_tol=1e-6, abs_tol=0):
            yield f"its lr is {lr:g}, and the schedule's {due:g}"
        if (counted := updates_made(group)) not in (None, made):
            yield f"its optimizer has made {counted} updates of {made}"


def rng_state(ranks: Ranks) -> list[dict[str, Any]]:
    """The state of torch's random generators on every rank."""
    generators = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(ranks.device)
    gathered = {name: ranks.gather(state) for name, state in generators.items()}
    return [{name: states[rank] for name, states in gathered.items()} for rank in range(ranks.world_size)]


def restore_rng(states: list[dict[str, Any]], ranks: Ranks, path: Path) -> None:
    """Put this rank's generators back; ranks that the checkpoint doesn't know keep their own.

    Raises:
        RunDirectoryError: what it holds is no generator's state.
    """
    if ranks.rank >= len(states):
        return
    try:
        torch.set_rng_state(states[ranks.rank]["cpu"].cpu())
        if ranks.device.type == "cuda" and "cuda" in states[ranks.rank]:
            torch.cuda.set_rng_state(states[ranks.rank]["cuda"].cpu(), ranks.device)
    except (TypeError, RuntimeError) as error:
        refuse_for_this_run(path, [f"its random generator's state isn't one: {error}"])
