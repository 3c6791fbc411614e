"""The files that pages need: the report's style and drawing, the board's own, and Vega's libraries."""

from __future__ import annotations

from importlib.resources import files

FILES = {
    "page.css": "text/css",
    "board.css": "text/css",
    "drawing.js": "text/javascript",
    "board.js": "text/javascript",
    "vega.js": "text/javascript",
}
"""By name, the type of each file."""


def content(name: str) -> bytes:
    """The bytes of the file of that name."""
    from tvlars_probe.report import elements

    if name == "vega.js":
        return elements.vega_bundle().encode()
    if name == "drawing.js":
        return elements.drawing_script().encode()
    if name.startswith("board."):
        return files("tvlars_probe.board").joinpath(name).read_bytes()
    return elements.resource(name).encode()
