"""``tvlars-probe export``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tvlars_probe.commands.options import Choice, Command, FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError
from tvlars_probe.exports.budget import BUDGET, PROJECT, TRACKERS

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=Command, name="export")
@click.argument("runs", nargs=-1, required=True, type=RunPath())
@option("--to", section="Export", type=Choice(TRACKERS), required=True, help="Tracker that gets the runs.")
@option(
    "--layers",
    section="Export",
    multiple=True,
    metavar="GLOB",
    show_default="none",
    help="Send all figures of the tensors of these names, beyond the budget; may be given again.",
)
@option(
    "--budget",
    section="Export",
    type=click.IntRange(min=1),
    default=BUDGET,
    help="Scalars of each hundredth of a run, beside those of --layers.",
)
@option("--project", section="Export", default=PROJECT, help="The tracker's project, or MLflow's experiment.")
@option(
    "--out",
    section="Output",
    type=FilePath(),
    show_default="RUN/exports",
    help="Folder for the tracker's files; with several runs one folder in it for each.",
)
def command(
    runs: tuple[Path, ...], to: str, layers: tuple[str, ...], budget: int, project: str, out: Path | None
) -> None:
    """Send recorded runs to TensorBoard, W&B (offline), trackio or MLflow.

    Totals, quantiles over layers, the layers furthest from their own median, epochs, curvature and findings; what is
    left out is said. No run is overwritten, and nothing goes over the network unless the tracker's own variables
    (WANDB_MODE, MLFLOW_TRACKING_URI) say so.
    """  # fmt: skip
    from tvlars_probe.exports.afterwards import export_trace
    from tvlars_probe.exports.settings import Export
    from tvlars_probe.runs import open_runs

    if out is not None and to == "trackio":
        raise UserError("trackio has one folder for all runs: leave --out out, and let TRACKIO_DIR name another")
    found = open_runs(runs)
    for run in found:
        folder = out if out is None or len(found) == 1 or to == "mlflow" else out / run.name
        export = Export(to, layers=layers, budget=budget, folder=folder, project=project)
        sent, left_out = export_trace(run, export, Progress(run.name))
        say(f"{run.path}: {sent:,} scalars to {to}" + (f"; {left_out}" if left_out else ""))


class Progress:
    """Shows how far an export is, on a terminal alone.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, done: int, of: int) -> None:
        if sys.stderr.isatty():
            end = "\r" if done < of else "\r\x1b[K"
            click.echo(f"{self._name}: {done / of:4.0%}{end}" if done < of else end, nl=False, err=True)
