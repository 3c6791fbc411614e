"""``tvlars-probe sweep``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.interruption import interruptible
from tvlars_probe.commands.options import Choice, Command, FilePath, Option, option
from tvlars_probe.commands.sweep_progress import SweepProgress
from tvlars_probe.commands.text import say
from tvlars_probe.commands.train import command as train_command
from tvlars_probe.commands.training_options import build_config
from tvlars_probe.errors import RunFailedError, UserError, nearest
from tvlars_probe.extras import require_torch
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun
from tvlars_probe.runners.sweeps.grid import Grid, read_grid
from tvlars_probe.runners.sweeps.launch_plan import LAUNCHERS, LaunchPlan
from tvlars_probe.runners.sweeps.sweep import sweep
from tvlars_probe.runners.sweeps.trials import FINISHED, Outcome, Trial, trial_path
from tvlars_probe.traces.run_directory import RUNS_FOLDER, refuse_inside_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NOT_SWEPT = ("run_dir", "resume", "rerun", "help")
"""Options of train that a sweep decides itself."""

_SHARED_SECTIONS = ("Devices", "Recording", "Sharpness")
"""Sections whose options are settings of all runs, never axes: ``--devices 0 1`` gives every run two devices."""


def grid_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of `tvlars-probe train`, each with any number of values; ``--seeds`` is ``--seed``."""
    # Reversed: the decorator that is applied last stands first in the help.
    for param in reversed([p for p in train_command.params if p.name not in _NOT_SWEPT]):
        assert isinstance(param, Option)
        names = [*param.opts, *(["--seeds"] if param.name == "seed" else [])]
        settings: dict[str, Any] = {"section": param.section, "help": param.help}
        if param.is_flag:
            # No default: a flag that isn't given must not replace the one in the grid's file.
            declaration = "/".join([names[0], *param.secondary_opts])
            settings |= {"default": None, "is_flag": True}
            command = option(declaration, param.name, show_default=False, **settings)(command)
        else:
            # Values stay words here: `build_trials` parses them as `tvlars-probe train` does.
            command = option(*names, param.name, greedy=True, metavar=_metavar(param), show_default=False, **settings)(
                command
            )
    return command


def _metavar(param: Option) -> str:
    """How the help shows an option's values: their type or the choices, and that there may be several."""
    kind = "|".join(param.type.choices) if isinstance(param.type, click.Choice) else param.type.name.upper()
    return f"[{kind}]..." if "|" in kind else f"{kind}..."


def launch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where runs are trained: the fields of `LaunchPlan`, and ``--dry-run``."""
    for add in reversed(_LAUNCH_OPTIONS):
        command = add(command)
    return command


_LAUNCH_OPTIONS = (
    option(
        "--launcher", section="Sweep", type=Choice(LAUNCHERS), default="inline",
        help="Here one after another, in subprocesses, or as jobs of slurm.",
    ),
    option("--jobs", section="Sweep", type=int, default=1, help="Runs at once, with local and slurm."),
    option("--dry-run", section="Sweep", is_flag=True, help="Only show what would be trained."),
    option("--partition", section="Slurm", show_default="slurm's own", help="Partition."),
    option("--time", "minutes", section="Slurm", type=int, default=24 * 60, help="Time limit of a run in minutes."),
    option("--gpus", section="Slurm", type=int, default=0, help="GPUs per node, one rank each."),
    option("--nodes", section="Slurm", type=int, default=1, help="Nodes of a run."),
    option("--cpus", section="Slurm", type=int, show_default="slurm's own", help="Cores per rank."),
)  # fmt: skip


@click.command(cls=Command, name="sweep", context_settings={"max_content_width": 110})
@click.argument("grid", required=False)
@option("--out", section="Sweep", type=FilePath(), show_default="runs/ and the grid's name", help=
        "Folder of the runs.")  # fmt: skip
@launch_options
@grid_options
def command(grid: str | None, out: Path | None, dry_run: bool, **values: Any) -> None:
    """Train a grid of runs.

    GRID is a TOML file, or a grid that comes with the package: classification-512, barlow-twins-512. Options with
    several values are its axes (--opt lars tvlars --lr 1 2 3 --seeds 0 1 2); those given here replace the file's.
    Finished runs are skipped, failed ones tried again.
    """

    if launched_by_torchrun():
        raise UserError("a sweep starts its runs itself: call it without torchrun (several ranks: --nproc, --devices)")
    plan = LaunchPlan(**{name: values.pop(name) for name in LaunchPlan.__dataclass_fields__})
    chosen = (read_grid(grid) if grid else Grid()) | given(values)
    if not chosen.axes and not chosen.settings:
        raise UserError("there is nothing to sweep: give a grid, or options such as --opt lars tvlars --lr 1 2 3")
    folder = out or RUNS_FOLDER / (Path(grid).stem if grid else "sweep")
    trials = build_trials(chosen, folder)
    refuse_inside_run(trials[0].path)
    if dry_run:
        for trial in trials:
            say(" ".join(("tvlars-probe", *trial.command, "--run-dir", str(trial.path))))
        return
    carry_out_all(trials, plan, folder)


def carry_out_all(trials: Sequence[Trial], plan: LaunchPlan, folder: Path) -> None:
    """Train the trials that aren't finished, say of each how it ended, and print a table of all.

    Args:
        trials: the trials.
        plan: where they are trained.
        folder: the sweep's folder.

    Raises:
        RunFailedError: one failed, or isn't finished.
        UserError: the launcher can't be used here, or the folder can't be written.
    """
    require_torch()  # before the folder is made
    say(f"{counted(len(trials), 'run')} in {folder}")
    has_bar = plan.launcher == "inline" and sys.stderr.isatty()
    progress = SweepProgress(len(trials), jobs=plan.jobs, has_bar=has_bar)
    with interruptible(progress.advice):
        outcomes = sweep(trials, plan, folder, progress.ended, progress.waits, progress.begins)
    render(trials, outcomes)
    failed = sum(o.status == "failed" for o in outcomes)
    if failed:
        raise RunFailedError(f"{failed} of {counted(len(trials), 'run')} failed; the same command tries them again")
    if unfinished := sum(o.status not in FINISHED for o in outcomes):
        raise RunFailedError(
            f"{unfinished} of {counted(len(trials), 'run')} not finished; the same command continues them"
        )


def given(values: dict[str, Any]) -> Grid:
    """The grid that the options of a command line describe: one value is a setting, several are an axis.

    Args:
        values: the options of train, by the names of their parameters; None or empty where not given.
    """
    settings: dict[str, tuple[str, ...]] = {}
    axes: dict[str, tuple[str, ...]] = {}
    params = {param.name: param for param in train_command.params}
    for name, value in values.items():
        param = params[name]
        assert isinstance(param, Option)
        if value is None or value == ():
            continue
        if isinstance(value, bool):
            # A flag is a setting without a value. Switched off it has its other name, such as no-download.
            settings[(param.opts if value else param.secondary_opts or param.opts)[0].lstrip("-")] = ()
        elif len(value) == 1 or param.greedy or param.section in _SHARED_SECTIONS:
            settings[param.opts[0].lstrip("-")] = tuple(value)
        else:
            axes[param.opts[0].lstrip("-")] = tuple(value)
    return Grid(settings=settings, axes=axes)


def build_trials(grid: Grid, folder: Path) -> list[Trial]:
    """The runs of a grid. Points that differ in no setting that counts are one run: λ makes no difference to lars.

    Raises:
        UserError: the grid has an option that train doesn't know, or a value that it refuses.
    """
    # Every name that an option of train goes by, without its dashes, as a grid's file has them.
    aliases = {name.lstrip("-"): p.opts[0].lstrip("-") for p in train_command.params for name in p.opts}
    names = {*grid.settings, *grid.axes}
    if strange := sorted(names - {*aliases} - {"seeds"}):
        told = nearest(strange[0], aliases)
        named = ", ".join(f"--{name}" for name in strange)
        raise UserError(f"tvlars-probe train has no option {named}{told and f'. {told}'}")
    trials: dict[Path, Trial] = {}
    for point in grid.points():
        words = ["--seed" if word == "--seeds" else word for word in grid.command_line(point)]
        try:
            config = build_config(train_command.make_context("train", list(words)).params)
        except click.ClickException as error:
            raise UserError(f"{' '.join(words)}: {error.format_message()}") from None
        # The path holds a hash of what changes the numbers: points of one path are one run, described by the first.
        path = trial_path(folder, config)
        trials.setdefault(path, Trial(config=config, path=path, point=point, command=("train", *words)))
    return list(trials.values())


def render(trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> None:
    """Print a row per run of the grid: its point, how it ended, and where it is."""
    from tvlars_probe.commands.terminal import FittedTable, Terminal, TextColumn

    best = [outcome.best_test_acc1 for outcome in outcomes]
    columns = [TextColumn(axis, [trial.point[axis] for trial in trials], is_number=True) for axis in trials[0].point]
    columns += [
        TextColumn("status", [outcome.status for outcome in outcomes]),
        TextColumn("best test acc", ["" if value is None else f"{value:.2f} %" for value in best], is_number=True),
        TextColumn("run", [str(trial.path) for trial in trials]),
    ]
    Terminal(piped=10_000).print(FittedTable(columns, elsewhere="tvlars-probe runs"))
