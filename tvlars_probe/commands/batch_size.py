"""``tvlars-probe batch-size``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.headings import BATCH_SIZE
from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.interruption import interruptible
from tvlars_probe.commands.options import Choice, Command, option
from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.data.registry import SPLITS
from tvlars_probe.errors import UserError
from tvlars_probe.runners.launching.torchrun import speaks

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.batches.batch_size import BatchSizeAnswers
    from tvlars_probe.runs import Run

_MEASURING = ("split", "samples", "piece", "bn_mode", "eigenvectors", "precision", "devices", "nproc", "threads")
"""Parameters of the measurement, which need ``--checkpoint``."""


@click.command(cls=Command, name="batch-size")
@analysis_options
@option("--target", section="Analysis", type=float, show_default="chosen from the runs", help=
        "Loss to reach, for the time to target.")  # fmt: skip
@option("--window", section="Analysis", type=int, show_default="a tenth of them, 30 to 1000", help=
        "Recorded steps that signal and noise are averaged over.")  # fmt: skip
@option("--phase", section="Analysis", help="Phase of a run that has several; the first by default.")
@option("--seed", section="Analysis", type=int, default=0, help="Seed of everything random.")
@option("--checkpoint", section="Measuring first", help=
        "Measure the noise of one run at this checkpoint: last, best, all, or a step.")  # fmt: skip
@option("--split", section="Measuring first", type=Choice(SPLITS), default="train", help="Part of the data.")
@option("--samples", section="Measuring first", type=int, show_default="1000, or as many as there are", help=
        "Samples of that part.")  # fmt: skip
@option("--piece", section="Measuring first", type=int, show_default="1: each sample by itself", help=
        "Samples of a piece whose gradient is taken.")  # fmt: skip
@option("--bn", "bn_mode", section="Measuring first", type=Choice(BN_MODES), default="eval", help=
        "BatchNorm: running statistics, the piece's, or the sample's held constant.")  # fmt: skip
@option("--eigenvectors", section="Measuring first", type=int, default=0, help=
        "Give the share of the noise along so many top eigenvectors of the Hessian.")  # fmt: skip
@option("--precision", section="Measuring first", type=Choice(("float32", "float64")),
        show_default="that of the run's weights", help="Number type of the model.")  # fmt: skip
@option("--devices", "--dv", section="Measuring first", greedy=True, default=("auto",), show_default=
        "first CUDA device, else cpu", help="cpu, or numbers of CUDA devices, one rank each.")  # fmt: skip
@option("--nproc", section="Measuring first", type=int, show_default="1", help="Ranks on the CPU.")
@option("--threads", section="Measuring first", type=int, show_default="cores / ranks", help="torch threads per rank.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    runs: tuple[Path, ...],
    output: Output,
    target: float | None,
    window: int | None,
    phase: str | None,
    seed: int,
    checkpoint: str | None,
    **measuring: Any,
) -> None:
    """How large may the batch be? Three answers side by side.

    The noise scale of each run, by what train --noise or --noise-every has recorded, or measured here with
    --checkpoint; steps and samples to a target loss, of a sweep over batches; and runs branched from one checkpoint
    (tvlars-probe branch). Every figure has its 95 % interval, or is unknown.
    """
    from tvlars_probe.analyses.batches.batch_size import critical_batch_of
    from tvlars_probe.analyses.batches.noise_scale import window_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    window_of(0, window)  # refused before anything is read or measured
    found = open_runs(runs)
    if checkpoint is None:
        _check_measuring(ctx)
    else:
        _measure([*found], checkpoint, seed, measuring)
        found = open_runs(runs)
    result = critical_batch_of([Source(run, phase) for run in found], target=target, window=window, seed=seed)
    emit(output, result, result.table, lambda console: render(console, result))


def _check_measuring(ctx: click.Context) -> None:
    """Refuse options of a measurement that isn't made.

    Raises:
        UserError: one of them was given on the command line.
    """
    given = [name for name in _MEASURING if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if given:
        names = ", ".join("--bn" if name == "bn_mode" else f"--{name}" for name in given)
        raise UserError(f"{names} says how to measure, and nothing is measured: add --checkpoint last, or leave it out")


def _measure(runs: list[Run], checkpoint: str, seed: int, settings: dict[str, Any]) -> None:
    """Measure the noise of one run, and keep it with the run.

    Raises:
        UserError: several runs are given.
    """
    from tvlars_probe.runners.configuration.place import PlaceConfig
    from tvlars_probe.runners.posthoc.noise import NoiseJob, measure_noise

    if len(runs) != 1:
        raise UserError(f"--checkpoint measures one run, {len(runs)} were given: measure each by itself, then give all "
                        f"of them without it")  # fmt: skip
    runs[0].noise(["step"])  # raises if the rows on record can't be read: then none are added
    place = PlaceConfig(**{name: settings.pop(name) for name in ("devices", "nproc", "threads")})
    job = NoiseJob(run=runs[0].path, checkpoint=checkpoint, seed=seed, place=place, **settings)
    with interruptible(lambda: _kept(runs[0], job.name)):
        name = measure_noise(job)
    if not speaks():
        click.get_current_context().exit()
    click.echo(f"Measured, and kept with the run: {name}", err=True)  # stdout may be JSON


def _kept(run: Run, name: str) -> str:
    """What an interrupted measurement has left, and how to go on."""
    from tvlars_probe.runs import open_run

    rows = open_run(run.path).noise(["step", "measurement_id"])
    count = rows.loc[rows["measurement_id"].astype(str) == name, "step"].nunique()
    if not count:
        return "Interrupted: no checkpoint was measured to the end, and nothing is kept; the same command begins again"
    told = counted(count, "checkpoint")
    return f"Interrupted: the noise at {told} is kept with the run; the command without --checkpoint shows it"


def render(console: Console, result: BatchSizeAnswers) -> None:
    """Print the answers, and what may mislead."""
    print_verdict(console, result.verdict, title="Batch size")
    for noise in result.noise:
        console.print()
        print_verdict(console, noise.verdict, title=f"{noise.facts.name} ({noise.facts.method})")
        for row in noise.curve[noise.curve["top_share"].notna()].tail(1).to_dict("records"):
            error = row["top_share_error"]
            told = "its error is unknown" if error != error else f"standard error {100 * error:.2g}"
            which = f"the Hessian's {row['top_vectors']:.0f} top eigenvectors, at step {row['step']:,}"
            console.print(f"{100 * row['top_share']:.3g} % of the noise ({told}) lies along {which}", soft_wrap=True)
    for title, other in (("Time to target", result.time), ("Branches", result.branches)):
        if other is not None:
            console.print()
            print_verdict(console, other.verdict, title=title)
    console.print()
    console.print(table_of(result.table, BATCH_SIZE))
    for title, sentences in (("Not answered", result.missing), ("Doubts", result.doubts)):
        if sentences:
            console.print(f"\n{title}:")
        for sentence in sentences:
            console.print(f"- {sentence}", soft_wrap=True)
