"""Training the runs of a grid that aren't finished, each in its own run directory.

A sweep remembers nothing but what its run directories say. Called again it skips finished runs, waits for those that
another process is training, continues those that were cut off, and tries failed ones again.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import InterruptedRunError, RunDirectoryError, UserError
from tvlars_probe.runners.config import TrainConfig
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.run_directory import is_held, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

LAUNCHERS = ("inline", "local", "slurm")
FINISHED = ("completed", "diverged")
SUBMITIT_FOLDER = ".submitit"
"""Folder of submitit's files, below the sweep's: its name begins with a dot, so no search for runs looks into it."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        config: what to do.
        path: the run directory.
        point: the values of the grid's axes for this run, by option.
        command: the command line that would train this run alone.
    """

    config: TrainConfig
    path: Path
    point: Mapping[str, str]
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The state of a trial.

    Attributes:
        status: as `tvlars_probe.traces.run_directory.status` gives it, or "new" where there is no run yet.
        error: why the run failed, if it did.
        best_test_acc1: highest test accuracy of any epoch, in percent.
    """

    status: str
    error: str | None = None
    best_test_acc1: float | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Where a sweep's runs are trained.

    Attributes:
        launcher: "inline" (here, one after another), "local" (subprocesses) or "slurm".
        jobs: number of runs trained at once, with "local" and "slurm".
        partition: slurm's partition; None takes slurm's own choice.
        minutes: time limit of a run under slurm.
        gpus: GPUs per node under slurm, one rank each.
        nodes: nodes per run under slurm.
        cpus: cores per rank under slurm; None takes slurm's own choice.

    Raises:
        UserError: a number is too small.
    """

    launcher: str = "inline"
    jobs: int = 1
    partition: str | None = None
    minutes: int = 24 * 60
    gpus: int = 0
    nodes: int = 1
    cpus: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("jobs", 1), ("minutes", 1), ("gpus", 0), ("nodes", 1), ("cpus", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                option = {"minutes": "time"}.get(name, name)
                raise UserError(f"--{option} {value} is too few (allowed: {least} or more)")


def trial_path(folder: Path, config: TrainConfig) -> Path:
    """The run directory of a configuration in a sweep: a telling name, and a hash of what changes the numbers."""
    # The data isn't read here: the settings that choose it take the place of its fingerprint. So this hash isn't the
    # manifest's config_id.
    sample = f"{config.data.folder} {config.data.limit} {config.data.image_size}"
    world_size = config.place.nproc or len(config.place.devices)
    return folder / config.default_name(config.config_id(fingerprint=sample, world_size=world_size))


def outcome(path: Path) -> Outcome:
    """The state of the run at ``path``."""
    if not (path / FILE_NAME).exists():
        return Outcome(status="new")
    manifest = Manifest.load(path)
    state = status(path, manifest)
    error = "; ".join(manifest.notes[-1:]) if state == "failed" else None
    return Outcome(status=state, error=error, best_test_acc1=manifest.best_test_acc1)


def carry_out(config: Mapping[str, Any], path: Path, command: tuple[str, ...] = ()) -> Outcome:
    """Train the run at ``path`` until it is finished or failed, or wait for the process that does.

    An error of the run becomes a failed outcome, so that the sweep goes on. A signal ends the sweep, too.

    Args:
        config: what `TrainConfig.as_dict` gives, which other processes can be sent.
        path: the run directory.
        command: the command line, for the manifest.

    Returns:
        the outcome; its status is one of `FINISHED`, or "failed".

    Raises:
        InterruptedRunError: a signal ended the run.
    """
    from tvlars_probe.runners.train import resume, train

    while True:
        now = outcome(path)
        if now.status in FINISHED:
            return now
        if now.status == "running":
            time.sleep(_POLL_SECONDS)
            continue
        try:
            # train() continues interrupted and killed runs, but refuses a failed one, which only resume() takes up.
            if now.status == "failed":
                resume(path, command=command, quiet=True)
            else:
                train(TrainConfig.from_dict(dict(config)), path, command=command, quiet=True)
        except RunDirectoryError as error:
            if not is_held(path):
                return Outcome(status="failed", error=str(error))
            # Another process has taken the run in the meantime: wait for that process.
            time.sleep(_POLL_SECONDS)
        except InterruptedRunError:
            raise  # before the next clause, which would take it for the run's failure
        except Exception as error:
            return Outcome(status="failed", error=str(error) or type(error).__name__)


def sweep(
    trials: Sequence[Trial], plan: LaunchPlan, folder: Path, ended: Callable[[Trial, Outcome], None]
) -> list[Outcome]:
    """Train the trials that aren't finished, and return the outcomes of all, in order.

    Args:
        trials: the trials of a grid.
        plan: where they are trained.
        folder: the sweep's folder.
        ended: called with each trial and its outcome as soon as it is over; at first with those finished before.

    Raises:
        UserError: the launcher can't be used here.
    """
    launch = _inline if plan.launcher == "inline" else _submitted(plan, folder)
    found: dict[Path, Outcome] = {}

    def end(trial: Trial, result: Outcome) -> None:
        found[trial.path] = result
        ended(trial, result)

    waiting = []
    for trial in trials:
        if (before := outcome(trial.path)).status in FINISHED:
            end(trial, before)
        else:
            waiting.append(trial)
    launch(waiting, end)
    return [found[trial.path] for trial in trials]


def _inline(trials: Iterable[Trial], end: Callable[[Trial, Outcome], None]) -> None:
    """Train the trials in this process, one after another."""
    for trial in trials:
        end(trial, carry_out(trial.config.as_dict(), trial.path, trial.command))


def _submitted(plan: LaunchPlan, folder: Path) -> Callable[[Iterable[Trial], Callable[[Trial, Outcome], None]], None]:
    """A function that trains trials as jobs of submitit, as many at once as the plan allows."""
    executor = _executor(plan, folder / SUBMITIT_FOLDER)

    def launch(trials: Iterable[Trial], end: Callable[[Trial, Outcome], None]) -> None:
        waiting, active = list(reversed(list(trials))), dict[Any, Trial]()
        try:
            while waiting or active:
                # submitit starts every job at once, so it is given no more than may run.
                while waiting and len(active) < plan.jobs:
                    trial = waiting.pop()
                    job = executor.submit(work_in_job, trial.config.as_dict(), trial.path.absolute(), trial.command)
                    active[job] = trial
                for job in [job for job in active if job.done()]:
                    trial = active.pop(job)
                    end(trial, _of_job(job, trial))
                time.sleep(_POLL_SECONDS)
        finally:
            # When the sweep is interrupted its jobs end, too. One that can't be cancelled must not hide why.
            for job in active:
                with contextlib.suppress(Exception):
                    job.cancel()

    return launch


def work_in_job(config: Mapping[str, Any], path: Path, command: tuple[str, ...]) -> Outcome:
    """`carry_out` inside a job of submitit. Each task of a job with several is a rank, as under torchrun."""
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()
    try:
        return carry_out(config, path, command)
    except InterruptedRunError:
        return outcome(path)


def _of_job(job: Any, trial: Trial) -> Outcome:
    """The outcome of a job that has ended: the first task's, or failed where the job itself broke."""
    try:
        result: Outcome = job.results()[0]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Outcome(status="failed", error=lines[-1].strip() if lines else type(error).__name__)
    return outcome(trial.path) if result.status in FINISHED else result


def _executor(plan: LaunchPlan, folder: Path) -> Any:
    """submitit's executor for the plan.

    Raises:
        UserError: submitit isn't installed, or the launcher can't be used here.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            f"--launcher {plan.launcher} needs submitit: pip install 'tvlars-probe[sweep]', or use --launcher inline"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=plan.launcher)
    except RuntimeError as error:
        raise UserError(f"--launcher {plan.launcher} can't be used on this machine: {error}") from None
    executor.update_parameters(**parameters(plan))
    return executor


def parameters(plan: LaunchPlan) -> dict[str, Any]:
    """A plan as submitit's parameters. On one node the run starts its own ranks; on several each rank is a task."""
    if plan.launcher == "local":
        # submitit ends local jobs after minutes unless a limit is given; a year is none.
        return {"timeout_min": 60 * 24 * 365, "gpus_per_node": 0}
    several = plan.nodes > 1
    # Cores are asked for per task: on one node the only task holds those of all its ranks.
    wanted = {
        "timeout_min": plan.minutes,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus,
        "tasks_per_node": max(plan.gpus, 1) if several else 1,
        "cpus_per_task": plan.cpus if several or plan.cpus is None else plan.cpus * max(plan.gpus, 1),
        "slurm_partition": plan.partition,
    }
    return {name: value for name, value in wanted.items() if value is not None}
