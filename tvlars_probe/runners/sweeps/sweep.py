"""Many runs: those of a grid that aren't finished are trained, each in its own run directory.

What a run directory says is the only memory of a sweep. Called again it skips what is finished, waits for what another
process is training, continues what was cut off, and tries again what failed.
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
"""Below the sweep's folder: its job files, which no reader of runs looks into."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        config: what to do.
        path: its run directory.
        point: what is particular to it.
        command: its command line.
    """

    config: TrainConfig
    path: Path
    point: Mapping[str, str]
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial stands.

    Attributes:
        status: as `tvlars_probe.traces.run_directory.status`, or "new".
        error: why it failed, if it did.
        best_test_acc1: highest test accuracy, percent.
    """

    status: str
    error: str | None = None
    best_test_acc1: float | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Where a sweep's runs are trained.

    Attributes:
        launcher: "inline" (here, one after another), "local" (subprocesses) or "slurm".
        jobs: trained at once.
        partition: of slurm.
        minutes: time limit of a job under slurm.
        gpus: per node, one rank each.
        nodes: per job.
        cpus: per rank.
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
    """The run directory of a configuration in a sweep: a telling name and a hash of what changes the numbers."""
    sample = f"{config.data.folder} {config.data.limit} {config.data.image_size}"
    world_size = config.place.nproc or len(config.place.devices)
    return folder / config.default_name(config.config_id(fingerprint=sample, world_size=world_size))


def outcome(path: Path) -> Outcome:
    """How the run at ``path`` stands."""
    if not (path / FILE_NAME).exists():
        return Outcome(status="new")
    manifest = Manifest.load(path)
    state = status(path, manifest)
    error = "; ".join(manifest.notes[-1:]) if state == "failed" else None
    return Outcome(status=state, error=error, best_test_acc1=manifest.best_test_acc1)


def carry_out(config: Mapping[str, Any], path: Path, command: tuple[str, ...] = ()) -> Outcome:
    """Train the run at ``path`` until it is finished or failed, or wait for the process that does.

    What a run can raise the outcome says, but for a signal, which ends the sweep too. Other processes call it with a
    configuration as `TrainConfig.as_dict` gives it.
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
            if now.status == "failed":
                resume(path, command=command, quiet=True)
            else:
                train(TrainConfig.from_dict(dict(config)), path, command=command, quiet=True)
        except RunDirectoryError as error:
            if not is_held(path):
                return Outcome(status="failed", error=str(error))
            # Another process has taken it since: wait for that one.
            time.sleep(_POLL_SECONDS)
        except InterruptedRunError:
            raise
        except Exception as error:
            return Outcome(status="failed", error=str(error) or type(error).__name__)


def sweep(
    trials: Sequence[Trial], plan: LaunchPlan, folder: Path, ended: Callable[[Trial, Outcome], None]
) -> list[Outcome]:
    """Train what isn't finished; the outcomes of all, in order.

    Args:
        trials: of the grid.
        plan: where.
        folder: of the sweep.
        ended: called with each trial as soon as it is over, also with those that were finished before.

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
    for trial in trials:
        end(trial, carry_out(trial.config.as_dict(), trial.path, trial.command))


def _submitted(plan: LaunchPlan, folder: Path) -> Callable[[Iterable[Trial], Callable[[Trial, Outcome], None]], None]:
    executor = _executor(plan, folder / SUBMITIT_FOLDER)

    def launch(trials: Iterable[Trial], end: Callable[[Trial, Outcome], None]) -> None:
        waiting, active = list(reversed(list(trials))), dict[Any, Trial]()
        try:
            while waiting or active:
                # submitit starts everything that it is given, so it is given no more than may run.
                while waiting and len(active) < plan.jobs:
                    trial = waiting.pop()
                    job = executor.submit(work_in_job, trial.config.as_dict(), trial.path.absolute(), trial.command)
                    active[job] = trial
                for job in [job for job in active if job.done()]:
                    trial = active.pop(job)
                    end(trial, _of_job(job, trial))
                time.sleep(_POLL_SECONDS)
        finally:
            for job in active:
                with contextlib.suppress(Exception):
                    job.cancel()

    return launch


def work_in_job(config: Mapping[str, Any], path: Path, command: tuple[str, ...]) -> Outcome:
    """`carry_out` inside a job of submitit; where the job has several tasks each is a rank, as under torchrun."""
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()
    try:
        return carry_out(config, path, command)
    except InterruptedRunError:
        return outcome(path)


def _of_job(job: Any, trial: Trial) -> Outcome:
    try:
        result: Outcome = job.results()[0]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Outcome(status="failed", error=lines[-1].strip() if lines else type(error).__name__)
    return outcome(trial.path) if result.status in FINISHED else result


def _executor(plan: LaunchPlan, folder: Path) -> Any:
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
    """A plan as submitit's parameters: on one node the run starts its own ranks, on several each rank is a task."""
    if plan.launcher == "local":
        return {"timeout_min": 60 * 24 * 365, "gpus_per_node": 0}
    several = plan.nodes > 1
    wanted = {
        "timeout_min": plan.minutes,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus,
        "tasks_per_node": max(plan.gpus, 1) if several else 1,
        "cpus_per_task": plan.cpus if several or plan.cpus is None else plan.cpus * max(plan.gpus, 1),
        "slurm_partition": plan.partition,
    }
    return {name: value for name, value in wanted.items() if value is not None}
