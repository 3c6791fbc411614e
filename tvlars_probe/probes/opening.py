"""Taking hold of a run's directory: a new one, or one to continue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def open_journal(
    path: Path,
    manifest: Manifest,
    resume: Mapping[str, Any] | None,
    *,
    device: torch.device,
    world_size: int,
    note: Callable[[], None],
) -> Journal:
    """Hold the directory and begin a segment of the run.

    Args:
        path: of the run.
        manifest: of the run; continued, it takes over the history of the one that is there.
        resume: the state of a recorder from which the run goes on; None for a new run.
        device: where it computes.
        world_size: number of ranks.
        note: puts the parameters into the manifest, once it is complete.

    Raises:
        RunDirectoryError: something is there already, or there is none to continue, or it can't be written.
    """
    journal = Journal.create(path, manifest) if resume is None else _continue(path, manifest, resume)
    manifest.world_size = manifest.world_size or world_size
    note()
    try:
        step = 0 if resume is None else resume["step"]
        journal.begin_segment(step, device=str(device), threads=torch.get_num_threads(), world_size=world_size)
    except BaseException:
        journal.abandon() if resume is None else journal.release()
        raise
    return journal


def _continue(path: Path, manifest: Manifest, resume: Mapping[str, Any]) -> Journal:
    run_id = resume.get("run_id")
    if run_id is not None and run_id != (there := Manifest.load(path).run_id):
        raise RunDirectoryError(f"{path} holds the run {there}, and resume= is a state of the run {run_id}")
    # A state of before says nothing of epochs; then those that ended after its step go.
    last = resume.get("last_epoch")
    epochs_from = (-1 if last is None else last) + 1 if "last_epoch" in resume else None
    return Journal.resume(path, manifest, resume["step"], epochs_from)
