"""``tvlars-probe chart``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvlars_probe.commands.options import Command, FilePath, option
from tvlars_probe.commands.run_paths import found_run
from tvlars_probe.commands.text import say
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command(cls=Command, name="chart")
@click.argument("words", nargs=-1, metavar="KIND RUN...")
@option("--out", "-o", section="Output", type=FilePath(), help="Its suffix says the form.")
@option("--dark", section="Output", is_flag=True, help="Light letters on a dark ground: png, svg, pdf and json.")
@option("--list", "listing", section="Output", is_flag=True, help="List the kinds, and what these runs have data for.")
def command(words: tuple[str, ...], out: Path | None, dark: bool, listing: bool) -> None:
    """Draw a chart of runs into a file: html, png, svg, pdf, or Vega-Lite json, by its suffix.

    An html file stands by itself, needs no network, and is dark where its reader has chosen dark. --list shows the
    kinds; with runs, which of them these have the data for. Runs that have no data for the kind are named and left out.
    """
    runs = [found_run(Path(word)) for word in (words if listing else words[1:])]
    if listing:
        for line in _listing(runs):
            say(line)
        return
    if len(words) < 2:
        raise UserError("chart takes a kind and a run: tvlars-probe chart trust-ratio RUN -o FILE (--list lists kinds)")
    if out is None:
        raise UserError("name the file to write by -o: FILE.html, .png, .svg, .pdf or .json")
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.charts.export import DARK, LIGHT, file_content
    from tvlars_probe.charts.kinds import draw, kind, remarks
    from tvlars_probe.runs import open_runs
    from tvlars_probe.traces.outputs import check_output, write_output

    # The kind, and the place of the file, are checked before any run is read.
    kind(words[0])
    check_output(out)
    sources = [Source(run) for run in open_runs(runs)]
    write_output(out, file_content(draw(words[0], sources), out, DARK if dark else LIGHT))
    for remark in remarks(words[0], sources):
        say(remark, err=True)
    say(f"Written: {out}")


def _listing(runs: list[Path]) -> Iterator[str]:
    """A line per kind of chart, with what is missing where none of the runs at ``runs`` has the data for it."""
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.charts.kinds import KINDS, why_not
    from tvlars_probe.runs import open_runs

    sources = [Source(run) for run in open_runs(runs)] if runs else []
    width = max(map(len, KINDS))
    for name, chosen in KINDS.items():
        reason = why_not(name, sources) if sources else None
        yield f"{name:{width}}  {chosen.about}{f'  [{reason}]' if reason else ''}"
