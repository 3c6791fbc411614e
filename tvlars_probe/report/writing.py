"""The report as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import UserError
from tvlars_probe.report.content import gather
from tvlars_probe.report.page import render
from tvlars_probe.traces.outputs import check_output, write_output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tvlars_probe.analyses.source import Source


def page_of(sources: Sequence[Source]) -> bytes:
    """The report of these runs, as the content of an HTML file."""
    return encodable(render(gather(sources))).encode()


def write_report(sources: Sequence[Source], out: Path) -> None:
    """Write the report of these runs.

    Raises:
        UserError: ``out`` is no HTML file by its suffix, or can't be written, or lies in a run directory.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report is an HTML page: name {out.name} with the suffix .html")
    check_output(out)  # before the analyses, which take long
    write_output(out, page_of(sources))
