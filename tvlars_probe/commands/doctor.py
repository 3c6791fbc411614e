"""``tvlars-probe doctor``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import found_run
from tvlars_probe.commands.text import say

if TYPE_CHECKING:
    from tvlars_probe.diagnosis.results import Diagnosis


@click.command(cls=Command, name="doctor")
@click.argument("subject", metavar="MODULE:CLASS | RUN")
@option(
    "--set", "words", section="Optimizer", greedy=True, metavar="NAME=VALUE ...",
    help="Arguments of its constructor, such as lr=0.1; lr is 0.1 where it must be given and isn't.",
)  # fmt: skip
@option(
    "--steps", section="Optimizer", type=click.IntRange(10), default=2000,
    help="Steps in which a factor may die or overflow.",
)  # fmt: skip
@option("--phase", section="Run", help="Phase of a run that has several; the first by default.")
@option("--all", "everything", section="Output", is_flag=True, help="What is right or not applicable in full, too.")
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
@click.pass_context
def command(
    ctx: click.Context, subject: str, words: tuple[str, ...], steps: int, phase: str | None, everything: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """What is wrong with an optimizer, or with a run?

    MODULE:CLASS names an optimizer, such as torch.optim:SGD. It is tried on small tensors in float64 and float32: do
    steps move each tensor, and down, is the gradient left alone, does momentum begin right, is the state saved, do
    groups, foreach, zero norms, missing gradients and DTensors work, does a factor die out? A path with a / or an
    existing folder is a run, whose trace is asked.

    Exit code 0: nothing is wrong, or nothing could be tried, which is said. 1: something is wrong.
    """
    if not (is_run := _is_run(subject)) and ":" not in subject:
        subject = str(found_run(Path(subject)))  # a path, if runs/ has something of that name
        is_run = _is_run(subject)
    _refuse_options(ctx, ("words", "steps") if is_run else ("phase",), "a run" if is_run else "an optimizer")
    found = _of_run(subject, phase) if is_run else _of_class(subject, words, steps)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        _say(found, everything)
    if found.wrong:
        ctx.exit(1)


def _is_run(subject: str) -> bool:
    of_file = ".py:" in subject  # a class in a file, which `class_named` refuses with the remedy
    return not of_file and (os.sep in subject or "/" in subject or Path(subject).expanduser().exists())


def _refuse_options(ctx: click.Context, others: tuple[str, ...], what: str) -> None:
    """Refuse what was given and has no meaning for the subject, instead of ignoring it."""
    from tvlars_probe.errors import UserError

    flags = {one.name: one.opts[0] for one in ctx.command.params}
    for name in others:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UserError(f"{flags[name]} has no meaning for {what}: leave it out")


def _of_class(name: str, words: tuple[str, ...], steps: int) -> Diagnosis:
    from tvlars_probe.diagnosis.doctor import doctor
    from tvlars_probe.diagnosis.naming import class_named, settings_told

    return doctor(class_named(name), settings_told(words), steps=steps)


def _of_run(path: str, phase: str | None) -> Diagnosis:
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.diagnosis.of_run import diagnose_run
    from tvlars_probe.runs import open_run

    return diagnose_run(Source(open_run(Path(path).expanduser()), phase))


def _say(found: Diagnosis, everything: bool) -> None:
    """Print what is wrong first, with its remedy; then the rest, a line each."""
    from tvlars_probe.analyses.wording import counted

    say(found.subject)
    for line in found.description:
        say(f"  {line}")
    # What holds of all that couldn't be tried is said once.
    told = [check for check in found.checks if found.untried is None or check.answer == "wrong"]
    for answer in ("wrong", "can't tell", "right", "not applicable"):
        for check in [check for check in told if check.answer == answer]:
            say(f"{answer}: {check.name}: {check.came}")
            if everything or answer == "wrong":
                say(f"  tried: {check.tried}")
                say(f"  expected: {check.expected}")
            if check.remedy:
                say(f"  remedy: {check.remedy}")
    wrong, right = len(found.wrong), sum(check.answer == "right" for check in found.checks)
    if found.untried is None:
        say(f"{found.subject}: {counted(wrong, 'thing')} wrong, {right} right of {len(found.checks)}")
    else:
        say(f"Nothing {'else ' if wrong else ''}could be tried: {found.untried}")
