"""Planning: whether what a user asks for is a run to make, a run to continue, or one that is finished already."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import RunDirectoryError, RunHeldError, UserError
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.launching.meeting import Meeting
from tvlars_probe.runners.phases.modes import MODES
from tvlars_probe.runners.phases.phase import phases_of
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.run_directory import RUNS_FOLDER, is_vacant, new_run_id, refuse_inside_run, status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tvlars_probe.data.batches import BatchPlan
    from tvlars_probe.data.images import ImageData
    from tvlars_probe.runners.phases.phase import Phase


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to make or to continue. It is pickled for the processes of the ranks.

    Attributes:
        config: what to do.
        path: the run directory.
        run_id: unique name of the run; a run that is continued keeps the one in its manifest.
        config_id: hash of the settings that change the numbers.
        command: the command line.
        checkpoint: the checkpoint to continue from; None starts from the beginning.
        continues: whether the run exists already.
        quiet: whether to show no progress while training, but what ``heading`` asks for.
        heading: with it only a bar below this line is shown, and only on a terminal.
    """

    config: TrainConfig
    path: Path
    run_id: str
    config_id: str
    command: tuple[str, ...] = ()
    checkpoint: Path | None = None
    continues: bool = False
    quiet: bool = False
    heading: str = ""

    @property
    def blank_state(self) -> dict[str, Any] | None:
        """A recorder's state in which a run without a checkpoint is continued from step 0; None for a new run."""
        first = next(iter(MODES[self.config.mode].phases))
        return {"step": 0, "samples": 0, "tokens": 0, "phase": first, "rates": {}} if self.continues else None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A run of the configuration that is finished already.

    Attributes:
        path: its directory.
        recorded_otherwise: whether its recording settings, which change no numbers, differ from those asked for.
    """

    path: Path
    recorded_otherwise: bool = False


def check_fit(config: TrainConfig, data: ImageData, world_size: int) -> None:
    """Find out before anything starts whether data, model, optimizer, batch and schedule go together.

    Raises:
        UserError: they don't.
    """
    samples = len(data.train)
    # A larger batch would be cut down to the data set, against what the run's settings say.
    if config.batch_size > samples:
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the training data: {data.name} has {samples} samples"
        )
    for phase in phases_of(config):
        plan = phase.plan(samples, world_size=world_size)
        if config.recording.noise and plan.micro_batches * world_size < 2:
            raise UserError(
                f"--noise compares the gradients of micro-batches and ranks, and here a batch is one piece: give "
                f"--micro-batch {max(plan.batch_size // 4, 1)} or several ranks (--nproc, --devices), or measure a "
                "fixed sample by --noise-every"
            )
        # For its error: a warm-up that leaves no step after it.
        phase.build_schedule(plan)
        _check_phase(phase, data, plan)


def _check_phase(phase: Phase, data: ImageData, plan: BatchPlan) -> None:
    """Build the phase's model and optimizer, and pass the smallest piece of a batch through the model.

    Raises:
        UserError: the model can't be built, or refuses the piece; the optimizer doesn't take its parameters; or a batch
            has fewer samples than there are ranks.
    """
    import torch

    if plan.batch_size < plan.world_size:
        raise UserError(
            f"{phase.batch_option} {plan.batch_size} is smaller than the number of ranks, {plan.world_size}"
        )
    # Weights are drawn here, and the caller's random generator stays where it was.
    with torch.random.fork_rng(devices=()), torch.no_grad():
        try:
            model = phase.build_model(data)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
            raise UserError(f"{phase.model_option} can't be built on this machine: {reason}") from None
        phase.build_optimizer(model)  # for its error
        # BatchNorm refuses one value per channel: beyond two samples, the size of the piece makes no difference.
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
    again: bool = False,
    meeting: Meeting | None = None,
    command: tuple[str, ...] = (),
    quiet: bool = False,
) -> Job | Done:
    """Decide what to do about a configuration at a path: make the run, continue it, or nothing.

    Args:
        config: what to do.
        path: the run directory; None takes a telling name below `RUNS_FOLDER`.
        data: the data set, whose fingerprint goes into the config_id.
        world_size: number of ranks.
        rerun: whether to make a new run beside one that is there.
        again: whether to continue a run that has failed.
        meeting: where torchrun's ranks met, which tells what an attempt before this one began.
        command: the command line.
        quiet: whether to show no progress while training.

    Raises:
        RunDirectoryError: something else is there, the run has failed, or another process is training it.
    """
    config_id = config.config_id(fingerprint=data.train.fingerprint(), world_size=world_size)
    path = path or RUNS_FOLDER / config.default_name(config_id)
    meeting, asked = meeting or Meeting(), f"{config_id} {path}"
    # What an attempt before this one began is continued: torchrun's restart asks for it.
    begun = meeting.begun(asked)
    if rerun:
        path = begun or _free(path, restarted=meeting.restarted)
    job = Job(config=config, path=path, run_id=new_run_id(path), config_id=config_id, command=command, quiet=quiet)
    if not (path / FILE_NAME).exists():
        refuse_inside_run(path)
        _check_writable(path)
        meeting.note(asked, path)
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
        raise RunHeldError(f"{path} is being trained by another process: wait for it, or --rerun beside it")
    # A failure is continued only on request, for its cause may still be there.
    if state == "failed" and not (again or begun or meeting.restarted):
        reason, remedy = "; ".join(manifest.notes[-1:]), f"--resume {shlex.quote(str(path))}, or --rerun"
        raise RunDirectoryError(f"{path} failed ({reason}): {remedy}")
    continued = _continue(job)
    meeting.note(asked, path)
    return continued


def plan_resume(
    path: Path, changes: Mapping[str, Any], *, command: tuple[str, ...] = (), quiet: bool = False
) -> Job | Done:
    """Decide how the run at ``path`` is continued with its own configuration.

    Args:
        path: a run directory.
        changes: new values of fields of `PlaceConfig` and `RecordConfig`; no other setting may change.
        command: the command line.
        quiet: whether to show no progress while training.

    Raises:
        RunDirectoryError: there is no run, another process is training it, or its last checkpoint is damaged.
        UserError: the run was not made by ``train``.
    """
    config = continued_config(path, changes)
    manifest = Manifest.load(path)
    state = status(path, manifest)
    if state in ("completed", "diverged"):
        return Done(path=path)
    if state == "running":
        raise RunHeldError(f"{path} is being trained by another process: wait for it")
    job = Job(
        config=config,
        path=path,
        run_id=manifest.run_id,
        config_id=manifest.config_id or "",
        command=command,
        quiet=quiet,
    )
    return _continue(job)


def continued_config(path: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """The configuration with which the run at ``path`` is continued. ``changes`` is as for `plan_resume`.

    Raises:
        RunDirectoryError: there is no run.
        UserError: the run was not made by ``train``.
    """
    manifest = Manifest.load(path)
    if not manifest.is_of_train:
        raise UserError(
            f"{path} was not made by tvlars-probe train: its own loop continues it, by record(..., resume=) with a "
            f"state that rec.state_dict() gave"
        )
    config = TrainConfig.from_dict(manifest.config).without_download()
    places = {f.name for f in dataclasses.fields(PlaceConfig)}
    assert {f.name for f in dataclasses.fields(RecordConfig)} | places >= changes.keys()
    return dataclasses.replace(
        config,
        place=dataclasses.replace(config.place, **{k: v for k, v in changes.items() if k in places}),
        recording=dataclasses.replace(config.recording, **{k: v for k, v in changes.items() if k not in places}),
    )


def check_same_data(job: Job, data: ImageData) -> None:
    """Refuse to continue a run on other data, or with other settings, than it began with.

    Raises:
        UserError: the data has changed.
        RunDirectoryError: the settings in the manifest have changed.
    """
    manifest, fingerprint = Manifest.load(job.path), data.train.fingerprint()
    began = (manifest.data or {}).get("fingerprint")
    if began is not None and began != fingerprint:
        raise UserError(f"{job.path} was trained on other data: {data.name} is not what it was when the run began")
    if manifest.config_id and manifest.world_size:
        # With the number of ranks that the run began with: it may go on with another one.
        found = job.config.config_id(fingerprint=fingerprint, world_size=manifest.world_size)
        if found != manifest.config_id:
            raise RunDirectoryError(
                f"{job.path / FILE_NAME} holds other settings (config_id {found}) than the run began with "
                f"({manifest.config_id}): put back what was changed in its config, or train anew in another --run-dir"
            )


def _continue(job: Job) -> Job:
    """The job that continues from the last checkpoint, or from the beginning if there is none."""
    _check_writable(job.path)
    there = checkpoints.list_checkpoints(job.path)
    last = list(there.values())[-1] if there else None
    if last is not None:
        # A checkpoint that is damaged, or another run's, is refused here, before any process is started.
        checkpoints.refuse(last, contents.misfits(checkpoints.load(last), Manifest.load(job.path)))
    return dataclasses.replace(job, continues=True, checkpoint=last)


def _free(path: Path, *, restarted: bool) -> Path:
    """The first of ``path``, ``path-2``, ``path-3``, ... at which nothing stands.

    In a process that torchrun restarted it is the one before: there stands the run that the first attempt began.
    """
    candidate, before, number = path, path, 1
    while candidate.exists():
        number += 1
        before, candidate = candidate, path.with_name(f"{path.name}-{number}")
    return before if restarted else candidate


def _check_writable(path: Path) -> None:
    """Refuse a path that isn't a writable run directory and can't become one. Nothing is made yet.

    Raises:
        RunDirectoryError: it can't.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file: choose another --run-dir")
    if path.is_dir() and not is_vacant(path) and not (path / FILE_NAME).exists():
        raise RunDirectoryError(f"{path} already holds something that is not a run: choose another --run-dir")
    # The folder in which the first missing one would be made.
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"can't write to {nearest}: choose another --run-dir, or change its permissions")
