"""From what a user asks for to a run that is made, continued, or done already."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.config import PlaceConfig, RecordConfig, TrainConfig
from tvlars_probe.runners.launching.torchrun import restarted
from tvlars_probe.runners.phases.modes import MODES
from tvlars_probe.runners.phases.phase import phases_of
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.run_directory import is_vacant, new_run_id, status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.data.batches import BatchPlan
    from tvlars_probe.data.images import ImageData
    from tvlars_probe.runners.phases.phase import Phase

RUNS_FOLDER = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to make or to continue; it crosses to other processes.

    Attributes:
        config: what to do.
        path: the run directory.
        run_id: of the run.
        config_id: of the configuration.
        command: the command line.
        checkpoint: to continue from.
        continues: whether the run directory exists.
        quiet: whether to say nothing while training.
    """

    config: TrainConfig
    path: Path
    run_id: str
    config_id: str
    command: tuple[str, ...] = ()
    checkpoint: Path | None = None
    continues: bool = False
    quiet: bool = False

    @property
    def blank_state(self) -> dict[str, Any] | None:
        """The recorder's state where a run is continued that was ended before its first checkpoint."""
        first = next(iter(MODES[self.config.mode].phases))
        return {"step": 0, "samples": 0, "phase": first, "rates": {}} if self.continues else None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A run of this configuration that is finished already.

    Attributes:
        path: its directory.
        recorded_otherwise: what is asked to be recorded is not what was; none of it changes the numbers.
    """

    path: Path
    recorded_otherwise: bool = False


def check_fit(config: TrainConfig, data: ImageData, world_size: int) -> None:
    """Find out before anything starts whether data, model, batch and schedule go together.

    Raises:
        UserError: they don't.
    """
    samples = len(data.train)
    if config.batch_size > samples:
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the training data: {data.name} has {samples} samples"
        )
    for phase in phases_of(config):
        plan = phase.plan(samples, world_size=world_size)
        phase.schedule.build(epochs=phase.epochs, steps_per_epoch=plan.steps_per_epoch, batch_size=plan.batch_size)
        _check_phase(phase, data, plan)


def _check_phase(phase: Phase, data: ImageData, plan: BatchPlan) -> None:
    """Pass the smallest piece of a batch through the phase's model."""
    import torch

    if plan.batch_size < plan.world_size:
        raise UserError(
            f"{phase.batch_option} {plan.batch_size} is smaller than the number of ranks, {plan.world_size}"
        )
    with torch.random.fork_rng(devices=()), torch.no_grad():
        try:
            model = phase.build_model(data)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
            raise UserError(f"{phase.model_option} can't be built on this machine: {reason}") from None
        x, _ = data.train.batch(torch.arange(min(plan.smallest_piece, 2)))
        try:
            model(*[x] * phase.views)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--model {phase.config.model.name} can't be trained on {data.name} in batches of which the smallest "
                f"piece on a rank is {plan.smallest_piece} of {plan.samples} samples ({phase.batch_option} "
                f"{plan.batch_size}): {error}"
            ) from None


def plan_run(
    config: TrainConfig,
    path: Path | None,
    *,
    data: ImageData,
    world_size: int,
    rerun: bool = False,
    command: tuple[str, ...] = (),
    quiet: bool = False,
) -> Job | Done:
    """What to do about this configuration at this path: make the run, continue it, or nothing.

    Raises:
        RunDirectoryError: something else is there, or another process is at it.
    """
    config_id = config.config_id(fingerprint=data.train.fingerprint(), world_size=world_size)
    path = path or RUNS_FOLDER / config.default_name(config_id)
    if rerun:
        path = _free(path, restarted=restarted())
    job = Job(config=config, path=path, run_id=new_run_id(path), config_id=config_id, command=command, quiet=quiet)
    if not (path / FILE_NAME).exists():
        _check_writable(path)
        return job
    manifest = Manifest.load(path)
    state = status(path, manifest)
    if manifest.config_id != config_id:
        raise RunDirectoryError(f"{path} holds a run with other settings: choose another --run-dir, or --rerun")
    if state in ("completed", "diverged"):
        before = TrainConfig.from_dict(manifest.config)
        differs = (before.recording, before.sharpness) != (config.recording, config.sharpness)
        return Done(path=path, recorded_otherwise=differs)
    if state == "running":
        raise RunDirectoryError(f"{path} is being trained by another process: wait for it, or --rerun beside it")
    if state == "failed" and not restarted():
        reason, remedy = "; ".join(manifest.notes[-1:]), f"--resume {shlex.quote(str(path))}, or --rerun"
        raise RunDirectoryError(f"{path} failed ({reason}): {remedy}")
    return _continue(job)


def plan_resume(
    path: Path, changes: Mapping[str, Any], *, command: tuple[str, ...] = (), quiet: bool = False
) -> Job | Done:
    """Continue the run at ``path`` with its own configuration.

    Args:
        path: a run directory.
        changes: fields of `PlaceConfig` and `RecordConfig` to change: nothing that changes the numbers.
        command: the command line.
        quiet: whether to say nothing while training.

    Raises:
        RunDirectoryError: there is no run, or it is being trained.
        UserError: it was not made by ``train``.
    """
    manifest = Manifest.load(path)
    config = TrainConfig.from_dict(manifest.config).without_download()
    places = {f.name for f in dataclasses.fields(PlaceConfig)}
    config = dataclasses.replace(
        config,
        place=dataclasses.replace(config.place, **{k: v for k, v in changes.items() if k in places}),
        recording=dataclasses.replace(config.recording, **{k: v for k, v in changes.items() if k not in places}),
    )
    state = status(path, manifest)
    if state in ("completed", "diverged"):
        return Done(path=path)
    if state == "running":
        raise RunDirectoryError(f"{path} is being trained by another process: wait for it")
    assert {f.name for f in dataclasses.fields(RecordConfig)} | places >= changes.keys()
    job = Job(
        config=config,
        path=path,
        run_id=manifest.run_id,
        config_id=manifest.config_id or "",
        command=command,
        quiet=quiet,
    )
    return _continue(job)


def check_same_data(job: Job, data: ImageData) -> None:
    """Refuse to continue a run on other data, or with other settings, than it began with."""
    manifest, fingerprint = Manifest.load(job.path), data.train.fingerprint()
    began = (manifest.data or {}).get("fingerprint")
    if began is not None and began != fingerprint:
        raise UserError(f"{job.path} was trained on other data: {data.name} is not what it was when the run began")
    if manifest.config_id and manifest.world_size:
        found = job.config.config_id(fingerprint=fingerprint, world_size=manifest.world_size)
        if found != manifest.config_id:
            raise RunDirectoryError(
                f"{job.path / FILE_NAME} holds other settings (config_id {found}) than the run began with "
                f"({manifest.config_id}): put back what was changed in its config, or train anew in another --run-dir"
            )


def _continue(job: Job) -> Job:
    """Continue from the last checkpoint, or from the start if there is none."""
    _check_writable(job.path)
    there = checkpoints.list_checkpoints(job.path)
    last = list(there.values())[-1] if there else None
    if last is not None:
        # Before any process is started: what is damaged or doesn't belong here is refused.
        checkpoints.refuse(last, contents.misfits(checkpoints.load(last), Manifest.load(job.path)))
    return dataclasses.replace(job, continues=True, checkpoint=last)


def _free(path: Path, *, restarted: bool) -> Path:
    """``path`` or the first of ``path-2``, ``path-3``, ... that nothing stands at; restarted, the one before it."""
    candidate, before, number = path, path, 1
    while candidate.exists():
        number += 1
        before, candidate = candidate, path.with_name(f"{path.name}-{number}")
    return before if restarted else candidate


def _check_writable(path: Path) -> None:
    """Refuse a place that can't become, or isn't, a run directory one may write to; nothing is made yet."""
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file: choose another --run-dir")
    if path.is_dir() and not is_vacant(path) and not (path / FILE_NAME).exists():
        raise RunDirectoryError(f"{path} already holds something that is not a run: choose another --run-dir")
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"can't write to {nearest}: choose another --run-dir, or change its permissions")
