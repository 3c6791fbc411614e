"""Pieces of HTML that the board's pages are made of. Whatever a run's text holds, it is text here and nothing else."""

from __future__ import annotations

import math
from html import escape

from tvlars_probe.admission.names import printable

MOST_LETTERS = 200
"""Letters of a text after which it is cut; a name may be a stranger's."""

TONES = {
    "running": "plain", "completed": "good", "diverged": "warn", "failed": "warn", "killed": "warn",
    "damaged": "warn", "gone": "warn", "interrupted": "open",
}  # fmt: skip
"""By a run's status, the class that gives it its colour."""


def text(value: object, most: int = MOST_LETTERS) -> str:
    """A text of a run: control characters spelt out, cut, escaped, and apart from what surrounds it.

    ``bdi`` keeps the writing direction of a text to itself.
    """
    return f"<bdi>{attribute(value, most)}</bdi>"


def attribute(value: object, most: int = MOST_LETTERS) -> str:
    """The same for the value of an attribute, which holds no elements."""
    shown = printable(str(value))
    return escape(shown if len(shown) <= most else f"{shown[: most - 1]}…")


def number(value: float | None, form: str = ".4g") -> str:
    """A number; "NaN" and "infinite" where it is none, nothing where it isn't known."""
    if value is None:
        return ""
    if math.isnan(value):
        return "NaN"
    return f"{value:{form}}" if math.isfinite(value) else ("infinite" if value > 0 else "−infinite")


def duration(seconds: float) -> str:
    """A length of time in its two largest units: "3 h 20 min"."""
    whole = max(int(seconds), 0)
    for long, short, length, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= length:
            return f"{whole // length} {long} {whole % length // part} {short}"
    return f"{whole} s"


def status_badge(status: str) -> str:
    """A run's status in its colour."""
    return f'<em class="badge {TONES.get(status, "plain")}">{attribute(status)}</em>'


def progress(done: int, total: int | None) -> str:
    """Steps done, of the whole run where that is known, with a bar."""
    told = f"{done:,} of {total:,}" if total else f"{done:,}"
    bar = f'<progress max="{total}" value="{min(done, total)}" aria-label="steps done"></progress>' if total else ""
    return f'<span class="steps">{told}</span>{bar}'


def page(kind: str, title: str, bar: str, main: str, **data: str) -> str:
    """A whole page.

    Args:
        kind: "list", "run" or "compare": what board.js does with it.
        title: text of the heading.
        bar: the rest of the top bar.
        main: what stands below it.
        **data: further ``data-`` attributes of the body.
    """
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in {"page": kind, **data}.items())
    drawing = "" if kind == "list" else '<script src="vega.js" defer></script><script src="drawing.js" defer></script>'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{attribute(title)} – tvlars-probe</title>\n<link rel="icon" href="data:,">\n'
        '<link rel="stylesheet" href="page.css"><link rel="stylesheet" href="board.css">\n'
        f'{drawing}<script src="board.js" defer></script>\n</head>\n<body{attributes}>\n'
        f'<header><h1>{text(title)}</h1><div class="bar">{bar}</div></header>\n'
        '<p id="lost" role="alert" hidden>The board can\'t be reached: it was closed, or the connection was lost.</p>\n'
        f"<main>\n{main}</main>\n</body>\n</html>\n"
    )
