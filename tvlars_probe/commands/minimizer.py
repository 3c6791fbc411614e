"""``tvlars-probe minimizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tvlars_probe.analyses.headings import CORRELATION, MINI_BATCH, SAMPLES, SHARPNESS
from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.options import Choice, Command, option

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.correlation import SharpnessCorrelation
    from tvlars_probe.analyses.minimizer import Minimizer


@click.command(cls=Command, name="minimizer")
@analysis_options
@option(
    "--bn-mode",
    section="Analysis",
    type=Choice(["eval", "train", "frozen-batch"]),
    show_default="the most measured one",
    help="BatchNorm mode to read; modes are never joined.",
)
@option(
    "--escaped",
    section="Analysis",
    type=float,
    default=0.5,
    help="Share of a sharp phase's top below which a run has escaped; a rise to its inverse is a sharp phase.",
)
@option("--phase", section="Analysis", help="Phase of a run that has several; the first by default.")
@option("--seed", section="Analysis", type=int, default=0, help="Seed of the bootstrap.")
def command(
    runs: tuple[Path, ...], output: Output, bn_mode: str | None, escaped: float, phase: str | None, seed: int
) -> None:
    """Did a run fall into a sharp minimum, and did it get out again?

    Reads the sharpness on record (train --sharpness-every, or tvlars-probe sharpness): early peak and end of each
    kind. Adaptive sharpness, which no change of scale moves, decides: trapped, escaped or never sharp. Over several
    runs: rank correlation of sharpness with the generalisation gap and the test error.
    """
    from tvlars_probe.analyses.minimizer import SharpnessRule
    from tvlars_probe.analyses.of_runs import correlation_of, minimizer_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    rule = SharpnessRule(escaped=escaped)
    sources = [Source(run, phase) for run in open_runs(runs)]
    if len(sources) == 1:
        one = minimizer_of(sources[0], bn_mode=bn_mode, rule=rule)
        emit(output, one, one.curves, lambda c: render(c, one))
        return
    over, each = correlation_of(sources, bn_mode=bn_mode, rule=rule, seed=seed)
    everything = {"correlation": over, "runs": each}
    emit(output, everything, over.runs, lambda c: render_runs(c, over))


def render(console: Console, result: Minimizer) -> None:
    """Print one run's answer."""
    print_verdict(console, result.verdict, title=f"{result.facts.name} ({result.facts.method})")
    if result.bn_mode is not None:
        console.print(f"Loss on {result.split} data, BatchNorm mode {result.bn_mode}")
    for mode, split in result.other_modes:
        console.print(f"Also on record, left out here: BatchNorm mode {mode} on {split} data")
    _print_samples(console, result)
    if len(result.summary):
        console.print()
        shown = result.summary.rename(columns={"beyond_limit": "beyond_limit_share"})  # shown in percent
        console.print(table_of(shown, SHARPNESS))
    if (beside := result.mini_batch) is not None:
        console.print()
        print_verdict(console, beside.verdict, title="Mini-batches:")
        console.print()
        console.print(table_of(beside.summary, MINI_BATCH))
    if len(result.further):
        console.print()
        told = result.further.dropna(axis="columns", how="all")  # few measures have a standard error, or a box
        console.print(table_of(told))


def _print_samples(console: Console, result: Minimizer) -> None:
    """Say which samples the curves are of, which figure was taken where there are several, and what was left out."""
    curves = result.samples[result.samples["is_curve"]]
    if len(curves):
        console.print(f"Sharpness: {result.on}")
    if (curves["draws"] == 1).any():
        console.print("tvlars-probe sharpness --draws tells how far other samples of that size differ")
    if (result.samples["draws"] > 1).any():
        console.print("A mean over samples of one size isn't the sharpness of all the data")
    for row in curves[curves["repeated"] > 0].itertuples():
        steps = counted(int(row.repeated), "step")  # type: ignore[arg-type]
        console.print(f"Measured more than once: {row.operator} at {steps}, where the latest figure is taken")
    if len(result.samples) > len(curves) or (curves["draws"] > 1).any():
        # What is one value in all rows goes without saying.
        alike = [name for name in ("bn_mode", "split", "engine") if result.samples[name].nunique() == 1]
        shown = result.samples.dropna(axis="columns", how="all").drop(columns=alike)
        console.print()
        headings = {name: heading for name, heading in SAMPLES.items() if name in shown}
        console.print(table_of(shown, headings, title="By sample; a curve is of one"))


def render_runs(console: Console, over: SharpnessCorrelation) -> None:
    """Print the answer over several runs, and their figures."""

    print_verdict(console, over.verdict, title=counted(len(over.runs), "run"))
    if over.bn_mode is not None:
        console.print(f"Loss on {over.split} data, BatchNorm mode {over.bn_mode}; sharpness {over.on}")
    for name in over.left_out:
        console.print(f"Left out here, measured otherwise (--bn-mode chooses a mode): {name}", soft_wrap=True)
    console.print()
    console.print(table_of(over.runs))
    if len(over.table):
        console.print()
        console.print(table_of(over.table, CORRELATION))
