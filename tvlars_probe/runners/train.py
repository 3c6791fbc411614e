"""One training run, from its configuration to its trace: what ``tvlars-probe train`` calls."""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import InterruptedRunError, RunFailedError, UserError
from tvlars_probe.runners.launching.meeting import Meeting, meet
from tvlars_probe.runners.launching.places import place
from tvlars_probe.runners.launching.process_group import join, leave
from tvlars_probe.runners.launching.processes import launch
from tvlars_probe.runners.launching.stop_signals import advice
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun, seat
from tvlars_probe.runners.phases.running import run_phases
from tvlars_probe.runners.planning import (
    Done,
    Job,
    check_fit,
    check_same_data,
    continued_config,
    plan_resume,
    plan_run,
)
from tvlars_probe.traces.run_directory import note_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tvlars_probe.runners.configuration.training import TrainConfig
    from tvlars_probe.runners.launching.places import Placement


def train(
    config: TrainConfig,
    path: Path | None = None,
    *,
    rerun: bool = False,
    again: bool = False,
    command: tuple[str, ...] = (),
    quiet: bool = False,
    heading: str = "",
    announce: Callable[[Job | Done], None] = lambda _: None,
) -> Path:
    """Train, record, and return the run directory.

    The same configuration again at the same path is not trained twice: a finished run is returned as it is, one that
    was interrupted or killed is continued.

    Args:
        config: what to do.
        path: the run directory; by default a telling name under ``runs/``.
        rerun: whether to train in a new folder beside a run that is there.
        again: whether to continue a run that has failed, too.
        command: the command line, for the manifest.
        quiet: whether to show no progress while training, but what ``heading`` asks for.
        heading: with it only a bar below this line is shown, and only on a terminal.
        announce: called with the plan before it is carried out.

    Raises:
        UserError: something can't be done as asked; nothing has been changed.
        RunFailedError: a rank ended with an error, which the manifest notes.
        InterruptedRunError: a signal ended the run; the same call continues it.
    """

    def plan(world_size: int, meeting: Meeting) -> Job | Done:
        data = config.data.load(config.place.workers)
        check_fit(config, data, world_size)
        planned = plan_run(
            config, path, data=data, world_size=world_size, rerun=rerun, again=again, meeting=meeting,
            command=command, quiet=quiet,
        )  # fmt: skip
        return dataclasses.replace(planned, heading=heading) if isinstance(planned, Job) else planned

    return _carry_out(config, plan, announce)


def resume(
    path: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    command: tuple[str, ...] = (),
    quiet: bool = False,
    announce: Callable[[Job | Done], None] = lambda _: None,
) -> Path:
    """Continue a run from its last checkpoint. ``changes`` is as for `plan_resume`; the rest is as for `train`."""

    def decide() -> Job | Done:
        return plan_resume(path, changes or {}, command=command, quiet=quiet)

    # Of torchrun's ranks the first alone decides, in plan(): the run's state may change between two looks at it.
    planned = None if launched_by_torchrun() else decide()
    if isinstance(planned, Done):
        announce(planned)
        return planned.path

    def plan(world_size: int, meeting: Meeting) -> Job | Done:
        job = planned or decide()
        if isinstance(job, Done):
            return job
        data = job.config.data.load(job.config.place.workers)
        check_same_data(job, data)
        check_fit(job.config, data, world_size)
        return job

    return _carry_out(planned.config if planned else continued_config(path, changes or {}), plan, announce)


def _carry_out(
    config: TrainConfig, plan: Callable[[int, Meeting], Job | Done], announce: Callable[[Job | Done], None]
) -> Path:
    """Plan, announce the plan, train if it says so, and return the run directory."""
    placement = place(config.place)
    if not launched_by_torchrun():
        planned = plan(placement.nproc, Meeting())
        announce(planned)
        if isinstance(planned, Job):
            _train(planned, placement)
        return planned.path
    rank, world_size = seat()
    meeting = meet()
    # Only rank 0 plans, so that all ranks follow one plan. It does so before the ranks are a group: planning passes a
    # batch through the model, whose layers would wait to sum over ranks that make no such pass.
    planned_here = _attempt(plan, world_size, meeting) if rank == 0 else None
    ranks = join(placement, meeting)
    try:
        outcome = ranks.from_first(planned_here)
        if isinstance(outcome, UserError):
            raise outcome
        if ranks.is_first:
            announce(outcome)
        if isinstance(outcome, Job):
            _train(outcome, placement, speaks=ranks.is_first)
        return outcome.path  # type: ignore[no-any-return]
    finally:
        leave()


def _train(job: Job, placement: Placement, *, speaks: bool = True) -> None:
    """Train the run of a job.

    Args:
        job: what to do.
        placement: the ranks of this machine.
        speaks: whether the error for a signal holds advice on how to continue: of torchrun's ranks, one gives it.

    Raises:
        InterruptedRunError: a signal ended the run.
        RunFailedError: the run failed; its manifest notes why.
    """
    try:
        number = launch(run_phases, job, placement, job.config.place)
    except InterruptedRunError as error:
        raise InterruptedRunError(error.signal, advice(job.path)) from None
    except KeyboardInterrupt:  # before training began, or in the middle of a long operation
        raise InterruptedRunError(signal.SIGINT, advice(job.path)) from None
    except RunFailedError as error:
        # Ranks that were killed leave a manifest that says running.
        note_failure(job.path, error)
        raise
    if number:
        raise InterruptedRunError(number, advice(job.path) if speaks else "")


def _attempt(plan: Callable[[int, Meeting], Job | Done], world_size: int, meeting: Meeting) -> Job | Done | UserError:
    """Plan, and return a user's error in place of raising it, so that every rank can raise it."""
    try:
        return plan(world_size, meeting)
    except UserError as error:
        return error
