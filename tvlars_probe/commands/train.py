"""``tvlars-probe train``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.commands.training_options import build_config, changes_on_resume, training_options
from tvlars_probe.runners.launching.torchrun import speaks

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.runners.planning import Done, Job


@click.command(cls=Command, name="train", context_settings={"max_content_width": 110})
@training_options
@option("--run-dir", section="Run", type=FilePath(), show_default="a telling name under runs/", help=
        "Folder of the run. The same command again continues an interrupted run and skips a finished one.")  # fmt: skip
@option("--resume", section="Run", type=RunPath(), help="Continue this run from its last checkpoint.")
@option("--rerun", section="Run", is_flag=True, help="Train again, in a new folder beside the run that is there.")
@click.pass_context
def command(ctx: click.Context, /, run_dir: Path | None, resume: Path | None, rerun: bool, **values: Any) -> None:
    """Train a model and record every layer.

    Trains an image classifier on one device, on several CUDA devices (--devices 0 1 2 3), on CPU ranks (--devices cpu
    --nproc N), or as torchrun started it, and records every layer's norms and trust ratios in every step into the
    run directory.
    """
    if resume is not None:
        # Options are refused before the runner is imported, which loads torch.
        changes = changes_on_resume(ctx)
        from tvlars_probe.runners import train as runner

        path = runner.resume(resume, changes, command=tuple(sys.argv), announce=_announce)
    else:
        config = build_config(values)
        from tvlars_probe.runners import train as runner

        path = runner.train(config, run_dir, rerun=rerun, command=tuple(sys.argv), announce=_announce)
    if speaks():
        _summarise(path)


def _announce(plan: Job | Done) -> None:
    """Say before training what will be done: make a run, continue one, or nothing."""
    from tvlars_probe.runners.planning import Done

    if isinstance(plan, Done):
        say(f"Already trained: {plan.path}")
        if plan.recorded_otherwise:
            say(
                "It was recorded with other options than these, which had no effect: --rerun trains it again, "
                "'tvlars-probe sharpness' measures its checkpoints"
            )
    elif plan.checkpoint is not None:
        say(f"Continuing {plan.path} from {plan.checkpoint.name}")
    elif plan.continues:
        say(f"Continuing {plan.path} from the beginning: it has no checkpoint yet")
    else:
        say(f"Recording into {plan.path}")


def _summarise(path: Path) -> None:
    """Say how the run ended."""
    from tvlars_probe.commands.show import summary_lines
    from tvlars_probe.runs import open_run

    for line in summary_lines(open_run(path)):
        say(line)
