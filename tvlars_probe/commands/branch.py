"""``tvlars-probe branch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.options import Choice, Command, FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.sweep import carry_out_all, launch_options
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.batch_change import LR_RULES
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.trials import Trial


@click.command(cls=Command, name="branch", context_settings={"max_content_width": 110})
@click.argument("run", type=RunPath())
@option("--checkpoint", section="Branches", required=True, show_default=False, help=
        "Where they begin: a step, last or best.")  # fmt: skip
@option("--batch-sizes", section="Branches", required=True, show_default=False, metavar="B,...", help=
        "A branch for each, such as 64,128,256.")  # fmt: skip
@option("--samples", section="Branches", type=int, required=True, show_default=False, help=
        "Training samples of each branch; a multiple of all batch sizes gives evaluations on the way.")  # fmt: skip
@option("--lr-rule", section="Branches", type=Choice(LR_RULES), default="sqrt", help=
        "How the learning rate follows the batch size.")  # fmt: skip
@option("--seeds", section="Branches", type=int, default=1, help="Orders of the data, a branch each with every batch.")
@option("--out", section="Branches", type=FilePath(), show_default="the run's own", help="Folder of the branches.")
@launch_options
def command(run: Path, batch_sizes: str, dry_run: bool, **values: Any) -> None:
    """Go on from a checkpoint of RUN with several batch sizes.

    Each branch keeps weights and optimizer, trains on as many samples, and is a run of its own: RUN-branch-STEP-bB, -sK
    for further orders of the data. The same command again skips finished branches and continues the others. At the end:
    the batch that starts to cost.
    """
    if launched_by_torchrun():
        raise UserError("branch starts its runs itself, with the run's own ranks: call it without torchrun")
    launching = LaunchPlan(**{name: values.pop(name) for name in LaunchPlan.__dataclass_fields__})
    from tvlars_probe.runners.sweeps.branches import BranchPlan, branch_trials

    plan = BranchPlan(run=run, batch_sizes=_numbers(batch_sizes), **values)
    trials = branch_trials(plan)
    if dry_run:
        for trial in trials:
            say(_line(trial))
        return
    carry_out_all(trials, launching, plan.folder)
    _render([trial.path for trial in trials])


def _numbers(text: str) -> tuple[int, ...]:
    """The batch sizes that a text names, with commas between them.

    Raises:
        UserError: it holds anything else.
    """
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise UserError(f"--batch-sizes {text}: give whole numbers with commas, such as 64,128,256") from None


def _line(trial: Trial) -> str:
    """What would be trained."""
    config = trial.config
    assert config.branch is not None
    steps, rate = -(-config.branch.samples // config.batch_size), config.optimizer.peak
    told = f"{counted(steps, 'step')}, lr {rate:.4g}, {counted(config.epochs, 'evaluation')}"
    return f"{trial.path}  batch {config.batch_size:,}, {told}"


def _render(paths: Sequence[Path]) -> None:
    """Print which batch starts to cost."""
    from tvlars_probe.analyses.batches.branches import branches_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.commands.analysis import print_verdict, table_of
    from tvlars_probe.commands.terminal import Terminal
    from tvlars_probe.runs import open_runs

    result = branches_of([Source(run) for run in open_runs(paths)])
    console = Terminal(piped=160)
    console.print()
    print_verdict(console, result.verdict, title=result.title)
    for doubt in result.doubts:
        console.print(f"- {doubt}", soft_wrap=True)
    console.print()
    console.print(table_of(result.table))
