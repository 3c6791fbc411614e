"""The HTML page: one file that holds everything and needs no network. All text of a run is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.charts.export import TOOLTIP, script_text
from tvlars_probe.displays.html import plain
from tvlars_probe.report.definitions import DEFINITIONS
from tvlars_probe.report.elements import (
    contents,
    drawing_script,
    layer_picker,
    resource,
    section_of,
    vega_bundle,
    verdict_cards,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.report.parts import Report


def render(report: Report) -> str:
    """The report as the text of an HTML page."""
    # "<\/script" is the same string to JavaScript, and doesn't end the element.
    bundle = vega_bundle().replace("</script", "<\\/script")
    names = [str(name) for name in report.runs.frame["run"]]
    title = f"tvlars-probe: {names[0]}" if len(names) == 1 else f"tvlars-probe: {len(names)} runs"
    # Filled by `section_of`: the sections must be made before the script element that holds the specifications.
    specs: dict[str, Any] = {}
    findings = "" if report.findings is None else section_of(report.findings, specs)
    sections = "".join(section_of(section, specs) for section in report.sections)
    return "".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f'<title>{plain(title)}</title>\n<link rel="icon" href="data:,">\n',
            f"<style>\n{resource('page.css')}{TOOLTIP}\n</style>\n</head>\n<body>\n",
            _header(title, report),
            f"<main>\n{contents(report)}{findings}{verdict_cards(report)}{sections}{_environment(report)}{_definitions()}</main>\n",
            f'<script type="application/json" id="specs">{script_text(specs)}</script>\n',
            "<script>", bundle, "</script>\n",
            f"<script>\n{drawing_script()}{resource('page.js')}</script>\n</body>\n</html>\n",
        )
    )  # fmt: skip


def _header(title: str, report: Report) -> str:
    """The bar at the top, with the list that selects a layer where there are any."""
    return (
        f'<header><h1>{plain(title)}</h1><div class="bar">{layer_picker(report)}'
        '<span class="hint">A click on a layer selects it in every chart and table.</span>'
        '<button id="print" type="button">Print</button></div></header>\n'
    )


def _environment(report: Report) -> str:
    """Configuration and environment, folded: what is alike in all runs once, and of each run the rest."""
    told = {name: dict(_entries(facts)) for name, facts in report.manifests.items()}
    first = next(iter(told.values()), {})
    alike = {
        label: value
        for label, value in first.items()
        if len(told) > 1 and all(entries.get(label) == value for entries in told.values())
    }
    blocks = [(f"Alike in all {len(told)} runs", alike)] if alike else []
    blocks += [(name, {k: v for k, v in entries.items() if k not in alike}) for name, entries in told.items()]
    text = "".join(
        f"<details><summary>{plain(name)}</summary><dl>"
        + "".join(f"<div><dt>{plain(label)}</dt><dd>{plain(value)}</dd></div>" for label, value in entries.items())
        + "</dl></details>"
        for name, entries in blocks
    )
    return f'<section id="environment"><h2>Configuration and environment</h2>{text}</section>\n'


def _entries(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries as a flat list, names joined by "›". Empty entries are left out; 0 and False aren't empty."""
    for name, value in facts.items():
        label = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _entries(value, f"{label} › ")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                yield from _entries(item, f"{label} {index + 1} › ")
        elif value not in (None, "", [], ()):
            yield label, str(value)


def _definitions() -> str:
    entries = "".join(f"<div><dt>{plain(term)}</dt><dd>{plain(text)}</dd></div>" for term, text in DEFINITIONS.items())
    return f'<section id="definitions"><h2>Definitions</h2><dl>{entries}</dl></section>\n'
