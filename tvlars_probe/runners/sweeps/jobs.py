"""Trials as jobs of submitit: in subprocesses, or under slurm.

Before a job's time limit slurm sends a signal, for which submitit would end the job at once, wherever it is. Here the
run ends in order, with a checkpoint; then submitit queues the job again, which goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from tvlars_probe.errors import InterruptedRunError, RunFailedError, UserError
from tvlars_probe.runners.launching.stop_signals import IS_CHILD
from tvlars_probe.runners.sweeps.trials import FINISHED, Outcome, Trial, carry_out, outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType

    from tvlars_probe.runners.sweeps.agenda import Agenda
    from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan

SUBMITIT_FOLDER = ".submitit"
"""Folder of submitit's files, below the sweep's: its name begins with a dot, so no search for runs looks into it."""

SIGNAL_SECONDS = 90
"""How long before the time limit slurm sends the signal, in which a step and a checkpoint must be made."""

FRUITLESS_JOBS = 3
"""So many jobs in a row that came to no checkpoint end a run: its steps don't fit into the time limit."""

_MOST_REQUEUES = 10_000
"""submitit wants a number. What ends a run that gets nowhere is `FRUITLESS_JOBS`."""

_POLL_SECONDS = 0.2


class Submitted:
    """Trains trials as jobs, as many at once as the plan allows.

    Raises:
        UserError: submitit isn't installed, or the launcher can't be used here.
    """

    def __init__(self, plan: LaunchPlan, folder: Path) -> None:
        self._plan, self._executor = plan, _executor(plan, folder / SUBMITIT_FOLDER)

    def __call__(self, agenda: Agenda) -> None:
        """Train the open trials that nobody else holds."""
        waiting, active = list(reversed(agenda.open)), dict[Any, Trial]()
        try:
            while waiting or active:
                # submitit starts every job at once, so it is given no more than may run.
                while waiting and len(active) < self._plan.jobs:
                    trial = waiting.pop()
                    if agenda.take(trial):
                        agenda.begins(trial)
                        active[self._submit(trial)] = trial
                for job in [job for job in active if job.done()]:
                    trial = active.pop(job)
                    agenda.put_back(trial, _of_job(job, trial))
                time.sleep(_POLL_SECONDS if active else 0)
        finally:
            # When the sweep is interrupted its jobs end, too. One that can't be cancelled must not hide why.
            for job in active:
                with contextlib.suppress(Exception):
                    job.cancel()

    def _submit(self, trial: Trial) -> Any:
        return self._executor.submit(
            TrialInJob(trial.config.as_dict(), trial.path.absolute(), trial.command, self._plan.minutes)
        )


class TrialInJob:
    """`carry_out` inside a job of submitit, which pickles it. Each task of a job with several is a rank.

    Attributes:
        fruitless: number of jobs in a row, up to this one, that came to no checkpoint.
    """

    def __init__(self, config: Mapping[str, Any], path: Path, command: tuple[str, ...], minutes: int) -> None:
        self._config, self._path, self._command, self._minutes = config, path, command, minutes
        self._began_at: int | None = None
        self.fruitless = 0

    def __call__(self) -> Outcome:
        """Train the run. If slurm's signal comes, the job is queued again, and this doesn't return."""
        import submitit

        job = submitit.JobEnvironment()
        if job.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export()
        os.environ[IS_CHILD] = "1"  # the scheduler kills what doesn't end
        self._began_at = _last_step(self._path)
        with _RequeueSignal() as requeue:
            try:
                return carry_out(self._config, self._path, self._command)
            except InterruptedRunError as error:
                requeue.if_asked()
                if job.cluster == "slurm" and job.global_rank == 0:
                    # Without a result the job's state is slurm's to tell: after preemption it may queue the job again.
                    sys.exit(128 + error.signal)
                return outcome(self._path)

    def checkpoint(self) -> Any:
        """What submitit queues again: this, which goes on from the run's last checkpoint.

        Raises:
            RunFailedError: too many jobs in a row came to no checkpoint.
        """
        import submitit

        self.fruitless = self.fruitless + 1 if _last_step(self._path) == self._began_at else 0
        if self.fruitless >= FRUITLESS_JOBS:
            jobs = f"{self.fruitless} jobs in a row"
            raise RunFailedError(f"{jobs} ended before a checkpoint; give them longer than --time {self._minutes}")
        return submitit.helpers.DelayedSubmission(self)


class _RequeueSignal:
    """A context in which submitit's signal ends a run in order, as SIGTERM does, before the job is queued again."""

    def __enter__(self) -> Self:
        import submitit

        self._number = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        self._asked, self._idle = False, signal.getsignal(signal.SIGTERM)
        self._requeue = signal.signal(self._number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(self._number, self._requeue)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if signal.getsignal(signal.SIGTERM) == self._idle:
            self.if_asked()  # no step is being made
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def if_asked(self) -> None:
        """Let submitit queue the job again if its signal has come, and exit. Ranks but the first leave that to it."""
        if self._asked and callable(self._requeue):
            self._requeue(self._number, None)


def _last_step(path: Path) -> int | None:
    from tvlars_probe.runners.checkpoints.files import list_checkpoints

    return max(list_checkpoints(path), default=None)


def _of_job(job: Any, trial: Trial) -> Outcome:
    """The outcome of a job that has ended: the first task's, or failed where the job itself broke."""
    now, first = outcome(trial.path), job.task(0)
    if now.status in FINISHED or (now.status == "interrupted" and not first.paths.result_pickle.exists()):
        return now
    try:
        result: Outcome = first.result()
    except Exception as error:
        # Behind the traceback submitit names its files.
        text = str(error).partition("You can check full logs")[0]
        lines = [line.strip() for line in text.splitlines() if line.strip(" -")]
        return Outcome(status="failed", error=lines[-1] if lines else type(error).__name__)
    return result


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
        executor = submitit.AutoExecutor(
            folder=folder, cluster=plan.launcher, **{f"{plan.launcher}_max_num_timeout": _MOST_REQUEUES}
        )
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
        # Of a short limit half is left for work.
        "slurm_signal_delay_s": min(SIGNAL_SECONDS, 30 * plan.minutes),
        # So that a job whose node fails is queued again, whatever the cluster's default.
        "slurm_additional_parameters": {"requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}
