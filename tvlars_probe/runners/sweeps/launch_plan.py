"""Where a sweep's runs are trained."""

from __future__ import annotations

from dataclasses import dataclass

from tvlars_probe.errors import UserError

LAUNCHERS = ("inline", "local", "slurm")


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
