"""Takes hold of a run's directory: a new one, or one to continue."""

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
    """Hold the run directory and begin a segment of the run.

    Args:
        path: the run directory.
        manifest: the run's manifest. In a continued run it takes over the history of the manifest on disk.
        resume: the recorder's state from which the run goes on; None for a new run.
        device: where this process computes.
        world_size: number of ranks.
        note: puts the parameters into the manifest; called before that is saved for the first time.

    Raises:
        RunDirectoryError: a new run's directory holds something already, there is no run to continue, it is another
            run than the state's, the directory can't be written, or the manifest would be one that no reader takes.
    """
    journal = Journal.create(path, manifest) if resume is None else _continue(path, manifest, resume)
    # A manifest that has a number of ranks keeps it; each segment holds the number of its own stretch.
    manifest.world_size = manifest.world_size or world_size
    try:
        note()
        manifest.refuse_unreadable()
        step = 0 if resume is None else resume["step"]
        journal.begin_segment(step, device=str(device), threads=torch.get_num_threads(), world_size=world_size)
    except BaseException:
        # Nothing has been recorded. A new run's directory goes; a continued run is only let go of.
        journal.abandon() if resume is None else journal.release()
        raise
    return journal


def _continue(path: Path, manifest: Manifest, resume: Mapping[str, Any]) -> Journal:
    run_id = resume.get("run_id")
    if run_id is not None and run_id != (there := Manifest.load(path).run_id):
        raise RunDirectoryError(f"{path} holds the run {there}, and resume= is a state of the run {run_id}")
    # An epoch may be logged after the state was saved, with no update between: only ``last_epoch`` tells whether its
    # row stays. States of older versions lack it; then None cuts the epochs that ended after the state's step.
    last = resume.get("last_epoch")
    epochs_from = (-1 if last is None else last) + 1 if "last_epoch" in resume else None
    return Journal.resume(path, manifest, resume["step"], epochs_from)
