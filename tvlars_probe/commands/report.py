"""``tvlars-probe report``."""

from __future__ import annotations

from pathlib import Path

import click

from tvlars_probe.admission.names import encodable
from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError


@click.command(cls=Command, name="report")
@click.argument("runs", nargs=-1, required=True, type=RunPath())
@option("--out", "-o", section="Output", type=FilePath(), default=Path("report.html"), help="File to write.")
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained HTML page: verdicts, charts, tables, configuration, definitions.

    It opens without a network, can be sent as it is, and prints. A click on a layer selects it in every chart.
    """
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.commands.analysis import check_output, write_output
    from tvlars_probe.report.content import gather
    from tvlars_probe.report.page import render
    from tvlars_probe.runs import open_runs

    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report is an HTML page: name {out.name} with the suffix .html")
    check_output(out)  # before the analyses, which take long
    page = render(gather([Source(run) for run in open_runs(runs)]))
    write_output(out, encodable(page).encode())
    say(f"Report: {out}")
