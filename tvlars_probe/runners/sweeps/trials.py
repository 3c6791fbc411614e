"""One run of a sweep: what it is, what its run directory says of it, and training it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import InterruptedRunError, RunDirectoryError, RunHeldError
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.run_directory import HAS_LOCKS, is_held, status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FINISHED = ("completed", "diverged")
RUNNING = "running"


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
        status: as `tvlars_probe.traces.run_directory.status` gives it, or "new" where there is no run yet; "running"
            wherever a process holds the run directory.
        error: why the run failed, if it did.
        best_test_acc1: highest test accuracy of any epoch, in percent.
    """

    status: str
    error: str | None = None
    best_test_acc1: float | None = None


def trial_path(folder: Path, config: TrainConfig) -> Path:
    """The run directory of a configuration in a sweep: a telling name, and a hash of what changes the numbers."""
    # The data isn't read here: the settings that choose it take the place of its fingerprint. So this hash isn't the
    # manifest's config_id.
    sample = f"{config.data.folder} {config.data.limit} {config.data.image_size}"
    world_size = config.place.nproc or len(config.place.devices)
    return folder / config.default_name(config.config_id(fingerprint=sample, world_size=world_size))


def outcome(path: Path) -> Outcome:
    """The state of the run at ``path``; failed where it can't be read."""
    held = Outcome(status=RUNNING) if HAS_LOCKS and path.is_dir() and is_held(path) else None
    if not (path / FILE_NAME).exists():
        return held or Outcome(status="new")
    try:
        manifest = Manifest.load(path)
    except RunDirectoryError as error:
        return held or Outcome(status="failed", error=str(error))
    state = status(path, manifest)
    if held and state not in FINISHED:
        return held
    reason = "; ".join(manifest.notes[-1:]) if state == "failed" else None
    return Outcome(status=state, error=reason, best_test_acc1=manifest.best_test_acc1)


def carry_out(config: Mapping[str, Any], path: Path, command: tuple[str, ...] = (), heading: str = "") -> Outcome:
    """Train the run at ``path`` until it is finished or failed, from its last checkpoint if it has one.

    An error of the run becomes a failed outcome, so that the sweep goes on. A signal ends the sweep, too.

    Args:
        config: what `TrainConfig.as_dict` gives, which other processes can be sent.
        path: the run directory.
        command: the command line, for the manifest.
        heading: with it a bar below this line shows how far the run is, on a terminal.

    Returns:
        the outcome; its status is one of `FINISHED`, or "failed", or "running" where another process trains the run.

    Raises:
        InterruptedRunError: a signal ended the run.
    """
    from tvlars_probe.runners.train import train

    try:
        # No look at the run's state before: in a job of several ranks each could find another one.
        train(TrainConfig.from_dict(dict(config)), path, again=True, command=command, quiet=True, heading=heading)
    except RunHeldError:
        return Outcome(status=RUNNING)
    except InterruptedRunError:
        raise  # before the next clause, which would take it for the run's failure
    except Exception as error:
        now = outcome(path)
        # Another process may have finished the run between this one's plan and its beginning.
        return now if now.status in FINISHED else Outcome(status="failed", error=str(error) or type(error).__name__)
    return outcome(path)
