"""Texts of a run, printed so that they can't steer the terminal: a run may come from a stranger."""

from __future__ import annotations

import click

from tvlars_probe.admission.names import printable


def one_line(text: str) -> str:
    """``text`` as `printable` gives it, with line ends and tabs spelt out, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, *, err: bool = False) -> None:
    """Print a line, its control characters spelt out."""
    click.echo(printable(text), err=err)
