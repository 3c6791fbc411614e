"""Names that are no UTF-8, as other systems and unpacked archives leave them.

Python keeps the bytes of such a name as lone surrogates. A path with them opens its file, but they can't be encoded,
and what is written, drawn or stored in a table is UTF-8. What is drawn is XML, too, which has no control characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_XML = {code: f"\\x{code:02x}" for code in range(0x20) if chr(code) not in "\t\n\r"}
_NOT_XML |= {code: f"\\u{code:04x}" for code in (0xFFFE, 0xFFFF)}
"""By code point, what stands in XML for a character that it can't hold, not even escaped."""


def encodable(text: str) -> str:
    r"""The text with its lone surrogates spelt out, as ``\udce9``: in JSON they mean what they did."""
    # A printable text holds none, which is found out in a fraction of the time.
    return text if text.isprintable() else text.encode(errors="backslashreplace").decode()


def drawable(text: str) -> str:
    r"""The text with lone surrogates, and the control characters that XML can't hold, spelt out, as ``\x1b``."""
    return text if text.isprintable() else encodable(text).translate(_NOT_XML)


def encodable_values(value: Any, spelt: Callable[[str], str] = encodable) -> Any:
    """The value of dicts and lists with all texts in it ``spelt`` out, by default only lone surrogates."""
    if isinstance(value, str):
        return spelt(value)
    if isinstance(value, dict):
        return {encodable_values(key, spelt): encodable_values(item, spelt) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable_values(item, spelt) for item in value]
    return value


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
