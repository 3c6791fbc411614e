"""Where a branch begins: the state of its parent's checkpoint, in a training with another batch size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tvlars_probe.optimizers.batch_change import state_with_settings_of
from tvlars_probe.runners.checkpoints import contents, restoring
from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from tvlars_probe.runners.configuration.branch import BranchConfig
    from tvlars_probe.runners.phases.loop import Training


def checkpoint_of(run: Path, branch: BranchConfig) -> Path:
    """The file of the parent's checkpoint, for the branch in the run directory ``run``."""
    # Resolved as `BranchConfig.parent` was made, and without "..", for the branch's own folder may not be there yet.
    parent = Path(os.path.normpath(run.resolve() / branch.parent))
    return parent / checkpoints.FOLDER / f"step-{branch.step}.pt"


def begin_branch(training: Training, branch: BranchConfig, path: Path) -> None:
    """Put the parent's state into the training of a branch. Every rank calls it.

    Weights, buffers and the optimizer's state are the parent's; learning rates are the branch's own. Random generators
    are the branch's own, too, unless it goes on in the parent's order of samples.

    Args:
        training: the training of the branch's only phase, newly built.
        branch: where it goes on from.
        path: the parent's checkpoint.

    Raises:
        RunDirectoryError: the checkpoint is missing, damaged, or of another run.
    """
    state = checkpoints.load(path, training.ranks.device)
    if (run_id := state["recorder"].get("run_id")) not in (None, branch.run_id):
        checkpoints.refuse_for_this_run(path, [f"it belongs to the run {run_id}, not {branch.run_id}"])
    restoring.restore_model(training.model, state, path)
    checkpoints.refuse_for_this_run(path, contents.unlike_optimizer(training.optimizer, state["optimizer"]))
    saved = {**state, "optimizer": state_with_settings_of(training.optimizer, state["optimizer"])}
    restoring.restore_optimizer(training.optimizer, saved, path)
    if branch.order == "parent":
        restoring.restore_rng(state["rng"], training.ranks, path)
