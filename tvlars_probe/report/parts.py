"""What a report is made of: sections with a verdict, their charts and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.verdict import Verdict


@dataclass(frozen=True)
class ReportTable:
    """A table of the page.

    Attributes:
        title: what stands above it.
        frame: its rows. The column ``parameter`` takes part in selecting a layer.
        headings: headings by column; columns without one aren't shown.
    """

    title: str
    frame: pd.DataFrame
    headings: dict[str, str]


@dataclass(frozen=True)
class Section:
    """A question, its answer, and what it rests on.

    Attributes:
        anchor: target of links to it, unique on the page.
        title: the run with its method, or what is shown of all runs.
        verdict: the answer; None for charts without one.
        specs: Vega-Lite specifications of the charts.
        notes: a sentence for each chart that is left out, because it would be empty.
        tables: the tables below the charts.
    """

    anchor: str
    title: str
    verdict: Verdict | None = None
    specs: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[ReportTable, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        runs: a row per run.
        findings: what rules found while the runs trained; None where they found nothing.
        sections: verdicts over all runs first, then run by run.
        manifests: by run, its configuration and environment.
        layers: names of the layers that can be selected.
        left_out: number of runs without charts of their own.
    """

    runs: ReportTable
    findings: Section | None
    sections: tuple[Section, ...]
    manifests: dict[str, dict[str, Any]]
    layers: tuple[str, ...]
    left_out: int = 0
