"""JSON and TOML: how deep a text nests and how many values it has is counted on its bytes, before it is parsed.

Parsers call themselves for each level: a text that is nested deep exhausts the stack.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits
from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from pathlib import Path

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_JSON_STRING = re.compile(rb'"[^"]*"?')
# A comment ends a line; a string of three quotes may hold one or two, also just before those that end it. One without
# an end takes all that follows. Nothing is tried twice (*+), so that the search is linear whatever the text.
_TOML_STRING = re.compile(
    rb'"""(?:[^\\"]|\\.|"{1,2}(?!"))*+(?:"{3,5})?'
    rb"|'''(?:[^']|'{1,2}(?!'))*+(?:'{3,5})?"
    rb'|"(?:\\.|[^"\\\n])*+"?'
    rb"|'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)
_OPENING, _CLOSING = b"[{", b"]}"
_OTHERS = bytes(code for code in range(256) if code not in _OPENING + _CLOSING)
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
"""An opening bracket as 1, and a closing one as −1 in a signed byte."""


def parse_json(text: bytes | str, path: Path | str, **options: Any) -> Any:
    """Parse JSON that neither nests deeper nor has more values than `limits` allow.

    Args:
        text: the JSON, in UTF-8.
        path: the file that it is of, or what else a message calls it.
        options: of `json.loads`.

    Raises:
        RefusedFileError: it nests too deep, or has too many values.
        ValueError: it is no JSON.
    """
    # surrogatepass: a text that is already a string may hold what can't be encoded.
    refuse_costly_json(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, path)
    # As UTF-8 only: json.loads would guess other encodings, in which the brackets stand elsewhere.
    return json.loads(text if isinstance(text, str) else text.decode(), **options)


def refuse_costly_json(content: bytes, path: Path | str) -> None:
    """Refuse JSON that nests deeper or has more values than `limits` allow, whether to be read or to be written.

    Raises:
        RefusedFileError: it does.
    """
    # Escapes go first, so that each quote that is left begins or ends a string. Outside strings JSON has no escapes.
    bare = _JSON_STRING.sub(b"", _ESCAPE.sub(b"", content))
    values = sum(bare.count(sign) for sign in (b"[", b"{", b","))
    if values > limits.TEXT_ELEMENTS:
        raise RefusedFileError(path, f"it has {values:,} values, of {limits.TEXT_ELEMENTS:,} that it can have")
    _refuse_deep(bare, path)


def parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    """Parse TOML that doesn't nest deeper than `limits` allow.

    Raises:
        RefusedFileError: it nests too deep.
        ValueError: it is no TOML.
    """
    bare = _TOML_STRING.sub(b"x", content)
    _refuse_deep(bare, path)
    # A dotted key nests as well.
    dots = max(piece.count(b".") for piece in re.split(rb"[\n,=\[\]{}]", bare))
    if dots > limits.TEXT_DEPTH:
        raise RefusedFileError(path, f"it nests {dots:,} deep, of {limits.TEXT_DEPTH} that it can")
    import tomllib  # few processes read any

    return tomllib.loads(content.decode())


def _refuse_deep(bare: bytes, path: Path | str) -> None:
    steps = bare.translate(_STEPS, _OTHERS)
    depth = max(itertools.accumulate(memoryview(steps).cast("b")), default=0)
    if depth > limits.TEXT_DEPTH:
        raise RefusedFileError(path, f"it nests {depth:,} deep, of {limits.TEXT_DEPTH} that it can")
