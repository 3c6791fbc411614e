"""Names that are no UTF-8, as other systems and unpacked archives leave them.

Python keeps the bytes of such a name as lone surrogates. A path with them opens its file, but they can't be encoded,
and what is written, drawn or stored in a table is UTF-8.
"""

from __future__ import annotations

from typing import Any


def encodable(text: str) -> str:
    r"""The text with its lone surrogates spelt out, as ``\udce9``: in JSON they mean what they did."""
    return text.encode(errors="backslashreplace").decode()


def encodable_values(value: Any) -> Any:
    """The same for all texts in a value of dicts and lists."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable_values(key): encodable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable_values(item) for item in value]
    return value
