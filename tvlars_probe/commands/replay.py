"""``tvlars-probe replay``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.headings import REPLAY
from tvlars_probe.analyses.wording import some_of
from tvlars_probe.commands.analysis import Output, analysis_options, emit, print_verdict, table_of
from tvlars_probe.commands.options import Choice, Command, option
from tvlars_probe.optimizers.registry import LAYERWISE
from tvlars_probe.optimizers.schedules import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from tvlars_probe.analyses.replay import Replay
    from tvlars_probe.analyses.variants import Variant

MOST_TENSORS = 1000
"""Most tensors in the table that is printed."""

_V = "Variant (by default the run's own settings)"
"""Section of the help."""


def variant_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that are settings of a variant."""
    # The decorator that is applied last stands first in the help: the order is the help's, reversed.
    for add in (
        option("--warmup-epochs", section=_V, type=float, help="Length of lars-warm's warm-up."),
        option("--schedule", section=_V, type=Choice(SCHEDULES), help="Another schedule."),
        option(
            "--lr", section=_V, type=float,
            help="Another learning rate, before the schedule; groups with a rate of their own keep it.",
        ),
        option("--gamma-min", section=_V, type=float, help="TVLARS' gamma_min."),
        option("--delay", section=_V, type=float, help="TVLARS' d_e, in updates."),
        option("--alpha", section=_V, type=float, help="TVLARS' alpha."),
        option("--lmbda", section=_V, type=float, help="TVLARS' delay factor, per update."),
        option("--adam/--no-adam", section=_V, default=None, help="lamb or nlamb without its ratio."),
        option(
            "--trust-clip/--no-trust-clip", section=_V, default=None,
            help="Clip the ratio (lars, tvlars: to lr; lamb, nlamb: to 1).",
        ),
        option("--exclusion", section=_V, type=Choice(["ndim", "undecayed"]), help="What is not adapted."),
        option(
            "--denominator", section=_V, type=Choice(["decayed", "sum", "grad"]),
            help="|g + wd w|, |g| + wd |w|, or |g|.",
        ),
        option("--weight-decay", "--wd", section=_V, type=float, help="Weight decay."),
        option("--eta", section=_V, type=float, help="Trust coefficient."),
        option("--optimizer", "--opt", section=_V, type=Choice(LAYERWISE), help="Optimizer."),
    ):  # fmt: skip
        command = add(command)
    return command


@click.command(cls=Command, name="replay")
@analysis_options
@variant_options
@option("--phase", section="Analysis", help="Phase of a run that has several; the first by default.")
def command(runs: tuple[Path, ...], output: Output, phase: str | None, **settings: Any) -> None:
    """What trust ratio would another variant have given, at each recorded step?

    A one-step counterfactual from the recorded norms: each step is taken as it was recorded, only its ratio is
    computed again. Settings that aren't given are those of each tensor's parameter group. Rows where g nearly cancels
    wd·w are flagged. lamb is replayed from traces of lamb only, nlamb from those of nlamb.
    """
    from tvlars_probe.analyses.replay_of_run import replay_of, the_one
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    given = {name: value for name, value in settings.items() if value is not None}
    result = replay_of(the_one([Source(run, phase) for run in open_runs(runs)]), **given)
    # Of the result only this goes into JSON: its matrices have an entry for every step and tensor.
    summary = {
        "run": result.facts.name,
        "verdict": result.verdict,
        "variants": [
            {"parameters": names, **(dataclasses.asdict(variant) if variant else {"optimizer": None})}
            for variant, names in _by_variant(result).items()
        ],
        "table": result.table,
    }
    emit(output, summary, result.rows, lambda c: render(c, result))


def render(console: Console, result: Replay) -> None:
    """Print the variant's trust ratios beside the applied ones."""
    optimizers = dict.fromkeys(variant.optimizer for variant in result.variants if variant)
    own = f"{result.facts.title} as {' and '.join(optimizers) or 'recorded'}"
    print_verdict(console, result.verdict, title=own)
    console.print()
    console.print(table_of(result.table.head(MOST_TENSORS), REPLAY))
    if len(result.table) > MOST_TENSORS:
        console.print(f"… and {len(result.table) - MOST_TENSORS} more: --json lists all")
    console.print("\nrate quotient: the variant's lr × trust ratio over the applied one, median over the steps")
    as_recorded = _by_variant(result).get(None, [])
    if as_recorded:
        named = some_of(as_recorded, most=50, room=1000)
        console.print(f"as recorded, their optimizer is another: {named}", soft_wrap=True)


def _by_variant(result: Replay) -> dict[Variant | None, list[str]]:
    """The tensors that each variant was replayed for."""
    found: dict[Variant | None, list[str]] = {}
    for name, variant in zip(result.parameters, result.variants, strict=True):
        found.setdefault(variant, []).append(name)
    return found
