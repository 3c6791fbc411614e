"""What pages are made of: cards of verdicts, sections of charts and tables. All text of a run is escaped."""

from __future__ import annotations

import functools
import math
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts.export import fitting_script, vega_lite_version
from tvlars_probe.charts.names import shortened
from tvlars_probe.displays import html
from tvlars_probe.displays.html import plain

if TYPE_CHECKING:
    from tvlars_probe.analyses.verdict import Figure, Verdict
    from tvlars_probe.report.parts import Report, ReportTable, Section

MOST_TABLE_ROWS = 400
"""Most rows of a table on the page; the commands export all."""

_OPTION = 44
"""Most letters of a layer in the list of layers: as many as a narrow screen holds."""

TONES = {
    "needed": "warn", "harmful": "warn", "diverged": "warn", "never learned": "warn", "rate too high": "warn",
    "made no difference": "good", "depends on the rate": "open", "trapped": "warn", "two basins": "warn",
    "escaped": "good", "never sharp": "good", "one basin": "good", "can't tell": "open",
    "beyond": "warn", "the answers disagree": "warn", "below": "good", "at": "good",
}  # fmt: skip
"""By a verdict's answer, the class that gives it its colour in page.css."""


@functools.cache
def vega_bundle() -> str:
    """Vega's libraries as one script, which gives pages ``window.vegaEmbed``. No network is needed for it."""
    import vl_convert

    # Names within the bundle are local to it: scripts after it find vegaEmbed through window.
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    return bundle


def resource(name: str) -> str:
    """The text of a file in this folder: page.css, drawing.js or page.js."""
    return files("tvlars_probe.report").joinpath(name).read_text(encoding="utf-8")


def drawing_script() -> str:
    """The script that draws a page's charts: ``drawing``, which needs `vega_bundle`."""
    return fitting_script() + resource("drawing.js")


def layer_picker(report: Report) -> str:
    """The list that selects a layer; empty where there are no layers."""
    if not report.layers:
        return ""
    labels = shortened(report.layers, _OPTION, len)
    options = "".join(f'<option value="{escape(name)}">{plain(labels[name])}</option>' for name in report.layers)
    return f'<label>Layer <select id="layer"><option value="">all</option>{options}</select></label>'


def verdict_cards(report: Report) -> str:
    """A card for each verdict, and the table of runs."""
    cards = [_card(section) for section in report.sections if section.verdict is not None]
    further = "1 further run stands" if report.left_out == 1 else f"{report.left_out} further runs stand"
    note = (
        f"<p>{further} in the tables and the charts over all runs only: of runs that differ in nothing but their seed, "
        "the one of median accuracy has charts of its own.</p>"
        if report.left_out
        else ""
    )
    return (
        f'<section id="verdicts"><h2>Verdicts</h2><div class="cards">{"".join(cards)}</div>'
        f"{note}{table_of(report.runs)}</section>\n"
    )


def contents(report: Report) -> str:
    """The table of contents: a line for all runs and for each run, with its questions and their answers."""
    lines: dict[str, list[str]] = {}
    findings = () if report.findings is None else (report.findings,)
    for section in (*findings, *report.sections):
        told = section.title if section.verdict is None else f"{section.verdict.question} {section.verdict.answer}"
        lines.setdefault(section.title, []).append(f'<a href="#{section.anchor}">{plain(told)}</a>')
    items = ['<li><a href="#verdicts">Verdicts and runs</a></li>']
    for title, links in lines.items():
        alone = len(links) == 1 and plain(title) in links[0]
        items.append(f"<li>{links[0] if alone else f'{plain(title)}: ' + ' · '.join(links)}</li>")
    items += [f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name in _LAST]
    return f'<nav id="contents" aria-label="Contents"><h2>Contents</h2><ul>{"".join(items)}</ul></nav>\n'


_LAST = (("environment", "Configuration and environment"), ("definitions", "Definitions"))
"""The sections at the end of every report."""


def _card(section: Section) -> str:
    verdict = section.verdict
    assert verdict is not None
    return (
        f'<a class="card {_tone(verdict)}" href="#{section.anchor}"><span class="of">{plain(section.title)}</span>'
        f'<span class="question">{plain(verdict.question)}</span><strong>{plain(verdict.answer)}</strong>'
        f'<span class="number">{plain(_number(verdict))}</span>{_how_often(verdict)}</a>'
    )


def _tone(verdict: Verdict) -> str:
    return TONES.get(verdict.answer, "plain")


def _how_often(verdict: Verdict) -> str:
    """How often such an answer was right, where that is known."""
    return "" if verdict.reliability is None else f'<span class="number">{plain(verdict.reliability.text)}</span>'


def _number(verdict: Verdict) -> str:
    """The figure to show beside the answer: the first that is known, with its meaning."""
    told = [f for f in verdict.figures if _is_told(f)]
    return f"{told[0].text}: {told[0].meaning}" if told else ""


def _is_told(figure: Figure) -> bool:
    return figure.value is not None and math.isfinite(figure.value)


def section_of(section: Section, specs: dict[str, Any], *, places: str = "chart") -> str:
    """A section with its charts' places; their specifications are added to ``specs``, by the names of the places.

    Args:
        section: the section.
        specs: specifications by name.
        places: what the names begin with.
    """
    parts = [f'<section id="{section.anchor}">']
    if section.verdict is None:
        parts.append(f"<h2>{plain(section.title)}</h2>")
    else:
        v = section.verdict
        parts.append(
            f"<h2><span>{plain(section.title)}</span> {plain(v.question)} "
            f'<em class="{_tone(v)}">{plain(v.answer)}</em></h2>'
            f"<p>{plain(html.sentence(v.reason))}</p>"
            + ("" if v.reliability is None else f"<p>Such an answer was {plain(v.reliability.text)}.</p>")
        )
    parts.append('<div class="charts">' if section.specs else "")
    for spec in section.specs:
        name = f"{places}-{len(specs)}"
        heading = spec.get("title") or {}
        seen, of = (plain(str(heading.get(part, ""))) for part in ("text", "subtitle"))
        # The caption shows the title, as text that wraps to the width of the page.
        specs[name] = {key: value for key, value in spec.items() if key != "title"}
        parts.append(
            f"<figure><figcaption><b>{seen}</b> <span>{of}</span></figcaption>"
            f'<div class="chart" id="{name}" role="img" aria-label="{seen}"></div></figure>'
        )
    parts.append("</div>" if section.specs else "")
    parts += [f"<p>{plain(note)}</p>" for note in section.notes]
    if section.verdict is not None and section.verdict.figures:
        parts.append(_figures(section.verdict))
    parts += [table_of(table, folded=len(table.frame) > 12) for table in section.tables]
    return "".join([*parts, "</section>\n"])


def _figures(verdict: Verdict) -> str:
    """The known figures of a verdict, folded."""
    rows = "".join(
        f"<tr><td>{plain(f.name.replace('_', ' '))}</td><td class=n>{plain(f.text)}</td>"
        f"<td>{plain(f.meaning)}</td></tr>"
        for f in verdict.figures
        if _is_told(f)
    )
    table = f"<div class=scroll><table>{rows}</table></div>"
    return f"<details class=rests><summary>What the verdict rests on</summary>{table}</details>"


def table_of(table: ReportTable, *, folded: bool = False) -> str:
    """A table with its title, which can be folded; of its rows at most `MOST_TABLE_ROWS`."""
    shown = table.frame.head(MOST_TABLE_ROWS)
    more = len(table.frame) - len(shown)
    note = f"<p>… and {counted(more, 'more row')}</p>" if more else ""
    body = f"<div class=scroll>{html.table(shown.to_dict('records'), table.headings)}</div>{note}"
    state = "" if folded else " open"
    return f"<details{state}><summary>{plain(table.title)} ({len(table.frame)})</summary>{body}</details>"
