"""A chart as a file: html, png, svg, pdf, or its Vega-Lite specification."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import altair as alt

from tvlars_probe.admission.names import drawable, encodable_values, printable
from tvlars_probe.charts import theme
from tvlars_probe.charts.names import pixels
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

C = TypeVar("C")


class Paper(NamedTuple):
    """What a chart in a file of its own is drawn on.

    Attributes:
        ground: colour of the background.
        ink: colour of lines and letters.
    """

    ground: str
    ink: str


LIGHT, DARK = Paper("#ffffff", "#222222"), Paper("#14171b", "#e6e8eb")

_PADDING = 12

TITLE_ROOM = 760.0
"""Width of a line of a title, in units of the chart."""

TOOLTIP = "#vg-tooltip-element table tr td.value { max-width: 80vw; overflow-wrap: anywhere }"
"""Style of tooltips, in which Vega cuts names at 300 pixels: they show names whole."""

_SIZES = {"text": 14 * 1.1, "subtitle": 12}
"""Size of the letters of a title's parts; the first part is bold."""

SCALE = 2.0
"""Pixels of a png per unit of the chart."""


def spec_of(chart: Any, ink: str = LIGHT.ink) -> dict[str, Any]:
    """The chart's Vega-Lite specification, with the shared look. Its description, for screen readers, is its title.

    Args:
        chart: an `altair` chart.
        ink: colour of lines and letters.
    """
    # vl-convert aborts the process over a text that can't be encoded, or isn't XML.
    spec: dict[str, Any] = encodable_values(chart.to_dict(validate=True), drawable)
    spec.pop("$schema", None)
    heading = spec.get("title") or {}
    parts = [heading.get("text"), heading.get("subtitle")] if isinstance(heading, dict) else [heading]
    told = [str(part) for part in parts if part]
    # altair's own `config` comes with ``spec`` and is replaced as a whole.
    return {"$schema": alt.SCHEMA_URL, "description": ". ".join(told), **spec, "config": theme.config(ink)}


def vega_lite_version() -> str:
    """The version of Vega-Lite that altair writes, as vl-convert names it: "6.4" for "v6.4.1"."""
    # vl-convert holds several versions; it must draw by the one that altair has validated the chart against.
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def script_text(value: Any) -> str:
    """JSON that can stand in a script element, whatever its strings hold."""
    # In JSON, "<" and the two line separators occur in strings only, and there the escapes mean the same. Without "<"
    # no "</script" ends the element; JavaScript before 2019 ends a line at U+2028 and U+2029.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def with_look(chart: C) -> C:
    """The altair chart with the look that it has in a file of its own."""
    given: Any = chart
    heading = given.title.to_dict() if isinstance(given.title, alt.TitleParams) else None
    title = {} if heading is None else {"title": alt.TitleParams(**_in_lines(heading))}
    looking: C = given.properties(background=LIGHT.ground, padding=_PADDING, **title).configure(**theme.config())
    return looking


def _opaque(spec: dict[str, Any], paper: Paper) -> dict[str, Any]:
    """The specification of a chart in a file of its own, where nothing beside it shows its title."""
    heading = spec.get("title")
    title = {"title": _in_lines(heading)} if isinstance(heading, dict) else {}
    return {**spec, **title, "background": paper.ground, "padding": _PADDING}


def _in_lines(heading: dict[str, Any]) -> dict[str, Any]:
    """The title with its texts wrapped."""
    texts = {part: heading[part] for part in _SIZES if isinstance(heading.get(part), str)}
    return heading | {part: _wrapped(text, _SIZES[part]) for part, text in texts.items()}


def _wrapped(text: str, size: float) -> str | list[str]:
    """A title in lines that are no wider than `TITLE_ROOM`, cut between words; a longer word, between its parts."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        pieces = [word] if pixels(word, size) <= TITLE_ROOM else re.findall(r"[^\W_]{1,40}[\W_]*|[\W_]+", word)
        for piece in pieces:
            if lines[-1] and pixels(lines[-1] + piece.rstrip(), size) > TITLE_ROOM:
                lines.append("")
            lines[-1] += piece
    lines = [line.rstrip() for line in lines]
    return lines[0] if len(lines) == 1 else lines


PAGE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #222222; --quiet: #5c6570; --line: #d9dde2 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --ink: #e6e8eb; --quiet: #9aa4af; --line: #333a42 }
  #chart svg { filter: brightness(1.35) }
}
body { margin: 1rem; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
figure { margin: 0 auto; max-width: 1200px }
figcaption { margin-bottom: 6px; overflow-wrap: anywhere }
figcaption span { display: block; color: var(--quiet); font-size: .88rem }
#chart { width: 100%; overflow-x: auto }
#chart svg { display: block }
#vg-tooltip-element { background: var(--ground) !important; color: var(--ink) !important;
  border: 1px solid var(--line) !important; font-family: inherit !important }
#vg-tooltip-element td.key { color: var(--quiet) !important }
"""
"""Style of a chart's own page: the width of the window, and light or dark as its reader has it."""


def fitting_script() -> str:
    """The script that draws a chart as wide as its place: ``fitting.embed``, which needs ``vegaEmbed``."""
    from importlib.resources import files

    return files("tvlars_probe.charts").joinpath("fitting.js").read_text(encoding="utf-8")


def _html(spec: dict[str, Any], _: Paper) -> bytes:
    """A page of its own, with Vega's libraries in it. Its reader chooses the paper."""
    import vl_convert

    heading = spec.pop("title", None) or {}
    heading = heading if isinstance(heading, dict) else {"text": heading}
    text, subtitle = (html.escape(printable(str(heading.get(part) or ""))) for part in ("text", "subtitle"))
    # Names within the bundle are local to it: the script after it finds vegaEmbed through window.
    snippet = "window.vegaEmbed = vegaEmbed;"
    # "<\/script" is the same string to JavaScript, and doesn't end the element.
    bundle = vl_convert.javascript_bundle(snippet, vl_version=vega_lite_version()).replace("</script", "<\\/script")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text}</title>
<link rel="icon" href="data:,"><style>{PAGE}{TOOLTIP}</style></head>
<body><figure><figcaption><b>{text}</b> <span>{subtitle}</span></figcaption>
<div id="chart" role="img" aria-label="{text}"></div></figure>
<script>{bundle}</script>
<script>
{fitting_script()}
const spec = {script_text(spec)};
const place = document.getElementById("chart");
let view = null;
let room = 0;
async function draw() {{
  if (place.clientWidth === room) return;
  room = place.clientWidth;
  if (view) view.finalize();
  view = await fitting.embed(place, spec);
  document.documentElement.dataset.ready = "true";
}}
window.ready = draw();
window.addEventListener("resize", () => {{ window.ready = window.ready.then(draw); }});
</script></body></html>
""".encode()


def _converted(function: str, **settings: Any) -> Callable[[dict[str, Any], Paper], bytes]:
    """A writer that calls a function of vl-convert, which is imported when a file is written."""

    def convert(spec: dict[str, Any], paper: Paper) -> bytes:
        import vl_convert

        made = getattr(vl_convert, function)(_opaque(spec, paper), vl_version=vega_lite_version(), **settings)
        return made.encode() if isinstance(made, str) else bytes(made)  # svg is text

    return convert


WRITERS: dict[str, Callable[[dict[str, Any], Paper], bytes]] = {
    "html": _html,
    "png": _converted("vegalite_to_png", scale=SCALE),
    "svg": _converted("vegalite_to_svg"),
    "pdf": _converted("vegalite_to_pdf"),
    "json": lambda spec, paper: (json.dumps(_opaque(spec, paper), ensure_ascii=False, indent=1) + "\n").encode(),
}
"""By suffix, the function that makes a file's content of a specification and a paper."""


def file_content(chart: Any, path: Path, paper: Paper = LIGHT) -> bytes:
    """The content of a chart's file, in the form that the suffix of ``path`` names.

    Raises:
        UserError: the suffix names no form in `WRITERS`, or a paper is chosen for a page, whose reader chooses it.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in WRITERS:
        raise unknown(f"suffix of {path.name}", path.suffix or "(none)", (f".{name}" for name in WRITERS))
    if suffix == "html" and paper is not LIGHT:
        raise UserError("an html file is dark where its reader has chosen dark: leave out --dark")
    return WRITERS[suffix](spec_of(chart, "currentColor" if suffix == "html" else paper.ink), paper)
