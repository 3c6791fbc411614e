"""``tvlars-probe init``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from tvlars_probe.commands.options import Command, FilePath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError

TEMPLATE = Path(__file__).with_name("sweep_template.toml")


@click.command(cls=Command, name="init")
@click.argument("file", type=FilePath(), default=Path("sweep.toml"))
def command(file: Path) -> None:
    """Write the file of a sweep (sweep.toml by default), to be changed.

    It names what a sweep may hold, with comments, and can be trained as it is: 12 runs on digits.
    """
    from tvlars_probe.traces.outputs import check_output

    if file.suffix.lower() != ".toml":
        raise UserError(f"a sweep is a TOML file: name {file.name} with the suffix .toml")
    check_output(file)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{file} is there already, and is left as it is: name another file") from None
    say(f"Written: {file}\nChange it, then: tvlars-probe sweep {shlex.quote(str(file))}")
