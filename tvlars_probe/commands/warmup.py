"""``tvlars-probe warmup``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.warmup.paired_gain import NEEDED
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.options import Choice, Command, option

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.warmup.analysis import Warmup
    from tvlars_probe.analyses.warmup.pairs import WarmupPairs

MOST_LAYERS = 24
"""Most layers that are printed; ``--csv`` has all of them."""


@click.command(cls=Command, name="warmup")
@analysis_options
@option("--phase", section="Analysis", help="Phase of a run that has several; the first by default.")
@option(
    "--pair-by",
    section="Analysis",
    type=Choice(["peak_lr", "lr"]),
    default="peak_lr",
    help="Rate by which runs are paired.",
)
@option(
    "--hot", section="Analysis", type=float, default=2.0, help="Times its settled ratio beyond which a layer is hot."
)
@option(
    "--explosion",
    section="Analysis",
    type=float,
    default=5.0,
    help="Times its usual level that counts as an explosion.",
)
@option("--loss-rise", section="Analysis", type=float, default=1.5, help="Times its first value that counts as harm.")
@option("--early-epochs", section="Analysis", type=float, default=5.0, help="First epochs, which count as early.")
def command(runs: tuple[Path, ...], output: Output, phase: str | None, pair_by: str, **lines: Any) -> None:
    """Was warm-up needed, for which layers, and for how long?

    Splits every layer's effective rate into its terms, dates explosions, measures redundant scaling, and says whether
    warm-up was needed. Several runs are paired by peak rate and seed: each rate's answer is what came of its pairs.
    """
    from tvlars_probe.analyses.of_runs import warmup_of, warmup_pairs_of
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.analyses.warmup.thresholds import Thresholds
    from tvlars_probe.runs import open_runs

    thresholds = dataclasses.replace(Thresholds(), **lines)  # the options have the names of its fields
    sources = [Source(run, phase) for run in open_runs(runs)]
    if len(sources) == 1:
        result, _ = warmup_of(sources[0], thresholds)
        emit(output, result, result.layers, lambda c: render(c, result))
        return
    pairs, each = warmup_pairs_of(sources, thresholds, by=pair_by)
    everything = {"pairs": pairs, "runs": each}
    emit(output, everything, pairs.runs, lambda c: render_pairs(c, pairs, pair_by))


def render(console: Console, result: Warmup) -> None:
    """Print one run's answer."""
    print_verdict(console, result.verdict, title=result.facts.title)
    for line in _lines(result):
        console.print(line, soft_wrap=True)
    # Layers that ask for the longest warm-up come first: the others may be cut off.
    order = ["length", "overwritten_steps", "hot_steps"]
    layers = result.layers.sort_values(order, ascending=False, kind="stable")
    console.print()
    console.print(table_of(layers.head(MOST_LAYERS), headings.LAYERS))
    if len(layers) > MOST_LAYERS:
        console.print(f"… and {len(layers) - MOST_LAYERS} more: --csv lists all")
    exploded = result.explosions[result.explosions["exploded"]].sort_values("first_step", kind="stable")
    if len(exploded):
        console.print()
        console.print(table_of(exploded.head(MOST_LAYERS), headings.EXPLOSIONS))
    if len(exploded) > MOST_LAYERS:
        console.print(f"… and {len(exploded) - MOST_LAYERS} more: --json lists all")


def _lines(result: Warmup) -> list[str]:
    """The lines below the verdict: the recorded warm-up, the suggested one, and the size of a full-rate step."""

    lines = []
    if result.warmup_steps is not None:
        lines.append(f"Recorded warm-up: {counted(result.warmup_steps, 'step')}")
    if result.suggested_steps:
        epochs = "" if result.suggested_epochs is None else f" ({result.suggested_epochs:.3g} epochs)"
        lead = "Suggested" if result.verdict.answer == NEEDED else "If one is needed"
        if (result.layers["length"] > 0).any():
            why = f", set by {some_of(result.setting_layers)}"
        else:  # no tensor needs any
            why = ": by then the loss, which rose, was back below its first value"
        lines.append(f"{lead}: {counted(result.suggested_steps, 'step')}{epochs}{why}")
    own, rest = result.verdict["adapted_step"], result.verdict["unadapted_step"]
    if own is not None and rest is not None:
        lines.append(
            f"A full-rate step moves an adapted tensor by {own:.3g} of its norm, an unadapted one by {rest:.3g}"
        )
    return lines


def render_pairs(console: Console, pairs: WarmupPairs, rate: str) -> None:
    """Print the answer over pairs of runs, of each rate, and each run's own."""

    print_verdict(console, pairs.verdict, title=counted(len(pairs.runs), "run"))
    if len(pairs.cells):
        console.print()
        console.print(table_of(pairs.cells, headings.warmup_cells(rate)))
    console.print()
    console.print(table_of(pairs.runs, headings.WARMUP_RUNS))
    if len(pairs.pairs):
        console.print()
        console.print(table_of(pairs.pairs, headings.pairs("method")))
