"""Putting a checkpoint's state back into a model, an optimizer, a schedule and the random generators."""

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
        RunDirectoryError: the weights are another model's.
    """
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        # torch's first line names only the class of the model; the next ones name the tensors.
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise RunDirectoryError(f"{path} holds another model's weights: {reason or error}; {MOVE_AWAY}") from None


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's optimizer state into ``optimizer``.

    Raises:
        RunDirectoryError: the state is another optimizer's.
    """
    try:
        refuse_for_this_run(path, contents.unlike_optimizer(optimizer, state["optimizer"]))
        # Loading replaces the groups' options by the saved ones, so the run's own are kept for the comparison. It is
        # made after loading, when the optimizer has added the options that an earlier version of it didn't save.
        before = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for mine, loaded in zip(before, optimizer.param_groups, strict=True):
            refuse_for_this_run(path, contents.unlike_options(mine, loaded, moving=MOVING))
    except RunDirectoryError:  # a ValueError, too, which has said what is wrong
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        refuse_for_this_run(path, [f"its optimizer's state is another's: {error}"])


def restore_schedule(
    scheduler: LambdaLR, schedule: Schedule, state: dict[str, Any], made: int, path: Path, *, before: int = 0
) -> None:
    """Put the scheduler where it was after ``made`` updates of the phase; call it after `restore_optimizer`.

    Args:
        scheduler: a new one; its base rates are the run's own.
        schedule: what it applies.
        state: the checkpoint.
        made: updates of the phase so far.
        path: the checkpoint's file, for messages.
        before: updates that the optimizer had counted when the phase began.

    Raises:
        RunDirectoryError: the checkpoint's scheduler is in another step, or the restored learning rates aren't those of
            the schedule.
    """
    refuse_for_this_run(path, _off_schedule(scheduler, schedule, state, made, before))


def _off_schedule(
    scheduler: LambdaLR, schedule: Schedule, state: dict[str, Any], made: int, before: int
) -> Iterator[str]:
    """Put the scheduler after ``made`` updates, and yield where the restored learning rates are off the schedule."""
    saved, groups = state["scheduler"].get("last_epoch"), scheduler.optimizer.param_groups
    if not fits(saved, int) or saved != made:
        yield f"its schedule is in step {shown(saved)}, not {made}"
        return
    lrs = [group["lr"] for group in groups]
    # Only the step comes from the checkpoint: an edited file can't change base rates. torch's count of steps starts at
    # 1, since the scheduler's constructor makes one.
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": made, "_step_count": made + 1, "_last_lr": lrs})
    for group, base in zip(groups, scheduler.base_lrs, strict=True):
        lr, due = group["lr"], base * schedule.factor(made)
        if not math.isclose(lr, due, rel_tol=1e-6, abs_tol=0):
            yield f"its lr is {lr:g}, and the schedule's {due:g}"
        if (counted := updates_made(group)) not in (None, before + made):
            yield f"its optimizer has made {counted} updates of {before + made}"


def rng_state(ranks: Ranks) -> list[dict[str, Any]]:
    """The states of torch's random generators, by device type, of each rank; every rank calls it.

    NumPy's and Python's generators are left out: the order of samples and their augmentation are functions of the seed.
    """
    generators = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(ranks.device)
    gathered = {name: ranks.gather(state) for name, state in generators.items()}
    return [{name: states[rank] for name, states in gathered.items()} for rank in range(ranks.world_size)]


def restore_rng(states: list[dict[str, Any]], ranks: Ranks, path: Path) -> None:
    """Put this rank's random generators back; a rank beyond those that saved keeps its own state.

    Raises:
        RunDirectoryError: an entry is no generator's state.
    """
    if ranks.rank >= len(states):
        return
    try:
        # A checkpoint may have been loaded onto the device, and torch takes these states only from the CPU.
        torch.set_rng_state(states[ranks.rank]["cpu"].cpu())
        if ranks.device.type == "cuda" and "cuda" in states[ranks.rank]:
            torch.cuda.set_rng_state(states[ranks.rank]["cuda"].cpu(), ranks.device)
    except (TypeError, RuntimeError) as error:
        refuse_for_this_run(path, [f"its random generator's state isn't one: {error}"])
