"""Text of a run, as it is printed: it can't steer the terminal."""

from __future__ import annotations

import click

_UNPRINTABLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_UNPRINTABLE |= {
    code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
}
"""Control characters, those that turn the direction of writing, and halves of characters that can't be encoded."""


def printable(text: str) -> str:
    """``text`` with its control characters spelt out."""
    return text.translate(_UNPRINTABLE)


def say(text: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(text), err=err)
