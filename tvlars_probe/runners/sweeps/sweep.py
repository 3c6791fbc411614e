"""Training the runs of a grid that aren't finished, each in its own run directory.

A sweep remembers nothing but what its run directories say. Called again it skips finished runs, continues those that
were cut off, and tries failed ones again. Those that another process trains it leaves to that process, and waits for
them at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.runners.sweeps.agenda import Agenda
from tvlars_probe.runners.sweeps.jobs import Submitted
from tvlars_probe.runners.sweeps.trials import carry_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
    from tvlars_probe.runners.sweeps.trials import Outcome, Trial


def sweep(
    trials: Sequence[Trial],
    plan: LaunchPlan,
    folder: Path,
    ended: Callable[[Trial, Outcome], None],
    waits: Callable[[Sequence[Trial]], None] = lambda _: None,
    begins: Callable[[Trial], str] = lambda _: "",
) -> list[Outcome]:
    """Train the trials that aren't finished, and return the outcomes of all, in order.

    Args:
        trials: the trials of a grid.
        plan: where they are trained.
        folder: the sweep's folder.
        ended: called with each trial and its outcome as soon as it is over; at first with those finished before.
        waits: called with the trials that other processes train when only those are left.
        begins: called with each trial before it is trained; gives the heading under which a terminal shows how far it
            is, if it is trained here.

    Raises:
        UserError: the launcher can't be used here, or the folder can't be written.
    """
    launch = train_here if plan.launcher == "inline" else Submitted(plan, folder)
    agenda = Agenda(trials, folder, ended, waits, begins)
    try:
        while agenda.open:
            launch(agenda)
            agenda.wait()
    finally:
        agenda.close()
    return [agenda.outcomes[trial.path] for trial in trials]


def train_here(agenda: Agenda) -> None:
    """Train the open trials that nobody else holds in this process, one after another."""
    for trial in list(agenda.open):
        if agenda.take(trial):
            heading = agenda.begins(trial)
            agenda.put_back(trial, carry_out(trial.config.as_dict(), trial.path, trial.command, heading))
