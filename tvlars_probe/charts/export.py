"""A chart as a file: html, png, svg, pdf, or its Vega-Lite specification."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

import altair as alt

from tvlars_probe.charts import theme
from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAPER = "#ffffff"
SCALE = 2.0
"""Pixels of a png per unit of the chart."""


def spec_of(chart: Any, ink: str = "#222222") -> dict[str, Any]:
    """The chart's Vega-Lite specification, with the shared look, and its title as what a screen reader says."""
    spec: dict[str, Any] = chart.to_dict(validate=True)
    spec.pop("$schema", None)
    heading = spec.get("title") or {}
    parts = [heading.get("text"), heading.get("subtitle")] if isinstance(heading, dict) else [heading]
    told = [str(part) for part in parts if part]
    return {"$schema": alt.SCHEMA_URL, "description": ". ".join(told), **spec, "config": theme.config(ink)}


def vega_lite_version() -> str:
    """Version of Vega-Lite that altair writes, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def script_text(value: Any) -> str:
    """JSON that can stand in a script element whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _opaque(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "background": PAPER, "padding": 12}


def _html(spec: dict[str, Any]) -> bytes:
    import vl_convert

    heading = spec.get("title") or {}
    text = heading.get("text", "") if isinstance(heading, dict) else str(heading)
    snippet = "window.vegaEmbed = vegaEmbed;"
    bundle = vl_convert.javascript_bundle(snippet, vl_version=vega_lite_version()).replace("</script", "<\\/script")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(text)}</title>
<link rel="icon" href="data:,"><style>body {{ margin: 1rem; overflow-x: auto }}</style></head>
<body><div id="chart"></div>
<script>{bundle}</script>
<script>
vegaEmbed("#chart", {script_text(_opaque(spec))}, {{ renderer: "svg" }});
</script></body></html>
""".encode()


def _converted(function: str, **settings: Any) -> Callable[[dict[str, Any]], bytes]:
    def convert(spec: dict[str, Any]) -> bytes:
        import vl_convert

        made = getattr(vl_convert, function)(_opaque(spec), vl_version=vega_lite_version(), **settings)
        return made.encode() if isinstance(made, str) else bytes(made)

    return convert


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "html": _html,
    "png": _converted("vegalite_to_png", scale=SCALE),
    "svg": _converted("vegalite_to_svg"),
    "pdf": _converted("vegalite_to_pdf"),
    "json": lambda spec: (json.dumps(_opaque(spec), ensure_ascii=False, indent=1) + "\n").encode(),
}


def file_content(chart: Any, path: Path) -> bytes:
    """What the chart's file holds, in the form that its suffix names.

    Raises:
        UserError: no such form.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in WRITERS:
        raise unknown(f"suffix of {path.name}", path.suffix or "(none)", (f".{name}" for name in WRITERS))
    return WRITERS[suffix](spec_of(chart))
