"""Texts of a run, printed so that they can't steer the terminal: a run may come from a stranger."""

from __future__ import annotations

import click

# Escape sequences begin with ESC (0x1b), or with one character from 0x80 to 0x9f.
_UNPRINTABLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
# Marks of writing direction make a text look like another. Surrogates can't be encoded: printing them may raise.
_UNPRINTABLE |= {
    code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
}
"""By code point, what is printed instead of it."""


def printable(text: str) -> str:
    """``text`` with its control characters spelt out, as ``\\x1b``."""
    return text.translate(_UNPRINTABLE)


def one_line(text: str) -> str:
    """``text`` as `printable` gives it, with line ends and tabs spelt out, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, *, err: bool = False) -> None:
    """Print a line, its control characters spelt out."""
    click.echo(printable(text), err=err)
