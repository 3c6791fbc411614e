"""Dataclasses that check their fields against their annotations.

Their values may come from a manifest that another program or another version has written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Checked:
    """Base of frozen dataclasses whose fields are plain values, literals or other dataclasses.

    Raises:
        ValueError: on construction, if a field's value is not of the annotated type, or not among the values that the
            annotated ``Literal`` allows.
    """

    # A base without __slots__ would give the subclasses, which are made with slots=True, a __dict__ after all.
    __slots__ = ()

    def __post_init__(self) -> None:
        for name, expected in _types_of(type(self)).items():  # type: ignore[arg-type]  # a class can be hashed
            if not _fits(value := getattr(self, name), expected):
                words = ", ".join(map(repr, get_args(expected))) if _is_literal(expected) else _name(expected)
                raise ValueError(f"{type(self).__name__}.{name} is {value!r:.60} (allowed: {words})")


def known_fields(kind: type[Any], stored: Any) -> dict[str, Any]:
    """Return the entries of ``stored`` that are fields of the dataclass ``kind``.

    Other entries are dropped: a later version may have added them.

    Raises:
        ValueError: ``stored`` is not a dict.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"a {kind.__name__} is {stored!r:.60}")
    known = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in stored.items() if name in known}


@functools.cache
def _types_of(kind: type[Any]) -> dict[str, Any]:
    # Annotations are strings here, and evaluating them is slow: it is done once per class.
    return get_type_hints(kind)


def _name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected).replace("typing.", "")


def _is_literal(expected: Any) -> bool:
    return get_origin(expected) is Literal


def _fits(value: Any, expected: Any) -> bool:
    if get_origin(expected) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(expected))
    if _is_literal(expected):
        return value in get_args(expected)
    if expected is float:
        # JSON and users write 1 for 1.0. A bool is an int in Python, but True as a rate is a mistake.
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, expected)
