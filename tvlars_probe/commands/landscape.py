"""``tvlars-probe landscape``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.interruption import interruptible
from tvlars_probe.commands.options import Choice, Command, option
from tvlars_probe.curvature.results import SLICE_BN_MODES
from tvlars_probe.data.registry import SPLITS
from tvlars_probe.errors import TraceError, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.landscape import Landscape


@click.command(cls=Command, name="landscape")
@analysis_options
@option("--checkpoint", section="Slice", default="last", help="last, best, or a step.")
@option("--dimensions", section="Slice", type=int, default=1, help="Random directions, 1 or 2.")
@option("--points", section="Slice", type=int, default=31, help="Points along each.")
@option("--span", section="Slice", type=float, show_default="1; 0.25 beyond both ends of a line", help="How far.")
@option("--bn", "bn_mode", section="Slice", type=Choice(SLICE_BN_MODES), default="interpolated", help=
        "BatchNorm statistics: the checkpoint's (on a line in between), or from the sample at each point.")  # fmt: skip
@option("--split", section="Loss", type=Choice(SPLITS), default="train", help="Part of data.")
@option("--samples", section="Loss", type=int, show_default="1000, or all there are", help="Samples of that part.")
@option("--seed", section="Slice", type=int, default=0, help="Seed of the directions.")
@option("--devices", "--dv", section="Devices", greedy=True, default=("auto",), show_default=
        "first CUDA device, else cpu", help="cpu, or the number of a CUDA device.")  # fmt: skip
@option("--stored", section="Slice", is_flag=True, help="Compute nothing: show the last slice on record.")
def command(runs: tuple[Path, ...], output: Output, stored: bool, **values: Any) -> None:
    """How does the loss look around a minimum, or between two?

    RUN: filter-normalised slices around a checkpoint. RUN RUN2: the straight line between both runs' checkpoints.
    What is computed is kept with the first run, in the table landscape.
    """
    from tvlars_probe.analyses.landscape import COLUMNS
    from tvlars_probe.analyses.of_runs import landscape_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    opened = open_runs(runs)
    if len(opened) > 2:
        raise UserError(f"landscape takes one run or two, {len(opened)} were given")
    # `open_runs` opens a run once, however often it is named.
    if len(opened) < len(runs):
        raise UserError(f"landscape was given one run twice ({' '.join(map(str, runs))}): give it once, or two runs")
    if not stored:
        opened[0].frame("landscape", ["step"])  # raises if the rows on record can't be read: then none are added
        with interruptible(lambda: "Interrupted: a slice is kept only when it is whole; the same command begins again"):
            _compute([run.path for run in opened], values)
    source = Source(opened[0])
    # Of these rows the newest slice is shown: of two runs, the newest line between them.
    rows = source.landscape(COLUMNS)
    if len(opened) == 2:
        rows = rows[rows["run2"] == opened[1].manifest.run_id]
    if not len(rows):
        what = f"line to {opened[1].path}" if len(opened) == 2 else "slice"
        raise TraceError(f"{opened[0].path} has no {what} on record: leave out --stored to compute one")
    result = landscape_of(source, rows)
    table = result.plane if len(result.plane) else result.line
    emit(output, result, table, lambda console: render(console, result))


def _compute(paths: list[Path], values: dict[str, Any]) -> None:
    """Measure a slice and store it with the first run. The imports need torch, which ``--stored`` does without."""
    from tvlars_probe.runners.configuration.place import PlaceConfig
    from tvlars_probe.runners.posthoc.landscape import LandscapeJob, measure_landscape

    devices = values.pop("devices")
    second = paths[1] if len(paths) == 2 else None
    measure_landscape(LandscapeJob(run=paths[0], run2=second, place=PlaceConfig(devices=devices), **values))


def render(console: Console, result: Landscape) -> None:
    """Print the slice."""
    print_verdict(console, result.verdict, title=f"{result.facts.name} ({result.facts.method})")
    console.print(f"Loss on {result.split} data, BatchNorm statistics {result.bn_mode}")
    console.print()
    console.print(table_of(result.line, {"alpha": "α", "loss": "loss", "acc1": "accuracy (%)"}))
    if len(result.plane):
        console.print(f"\n{result.plane_reason}", soft_wrap=True)
        console.print(f"{len(result.plane)} points of a plane are on record: tvlars-probe chart landscape-map")
