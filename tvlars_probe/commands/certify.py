"""``tvlars-probe certify``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tvlars_probe.commands.interruption import interruptible
from tvlars_probe.commands.options import Choice, Command, option
from tvlars_probe.commands.text import say

if TYPE_CHECKING:
    from tvlars_probe.runners.certificate import Certificate


@click.command(cls=Command, name="certify")
@option(
    "--opt", "optimizer", section="Training", type=Choice(["lars", "tvlars", "lamb", "sgd", "adamw"]), default="lars",
    help="What trains.",
)  # fmt: skip
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
@click.pass_context
def command(ctx: click.Context, optimizer: str, as_json: bool) -> None:
    """Do 1, 2 and 4 ranks train and measure alike here?

    Trains the cnn on 187 of scikit-learn's digits for one epoch of five batches, which no number of ranks divides, and
    measures the Hessian's top eigenvalue twice, in float64 and in float32, on 1, 2 and 4 ranks of this machine's CPU.
    Rounding explains differences of up to a hundred times what another order of sums makes on one rank. It takes one
    to two minutes on two cores.

    Exit code 0: rounding explains all differences. 1: it doesn't.
    """
    from tvlars_probe.runners.certificate import certify

    with interruptible(lambda: "Interrupted: nothing is kept; the same command begins again"):
        found = certify(optimizer, report=lambda line: click.echo(f"training on {line} ...", err=True))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        _say(found)
    if not found.holds:
        ctx.exit(1)


def _say(found: Certificate) -> None:
    """Print a line per comparison, and the answer."""
    for ranks, (whole, last) in found.shares.items():
        say(f"{ranks} rank{'' if ranks == 1 else 's'}: batches of {_sum(whole)}, the last one of {_sum(last)} samples")
    say(f"{'':9} {'ranks':>5}  {'':11} {'difference':>10}  {'other order':>11}  {'allowed':>8}")
    for one in found.deviations:
        verdict = "rounding" if one.is_explained else "NOT rounding"
        say(
            f"{one.precision:9} {one.ranks:>5}  {one.quantity:11} {one.difference:>10.2g}  {one.rounding:>11.2g}  "
            f"{one.allowed:>8.2g}  {verdict}"
        )
    worst = max(found.deviations, key=lambda one: one.difference / one.allowed)
    answer = "Rounding explains all differences" if found.holds else "Rounding doesn't explain all differences"
    say(
        f"{answer}: the largest beside its allowance is that of {worst.quantity} on {worst.ranks} ranks in "
        f"{worst.precision}, {worst.difference:.2g} ({found.seconds:.0f} s)"
    )


def _sum(shares: list[int]) -> str:
    return " + ".join(map(str, shares))
