"""Dataclasses whose fields are of the types that they say: their values may come out of a stranger's manifest."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Checked:
    """Base of frozen dataclasses of plain values, literals, and other dataclasses.

    Raises:
        ValueError: on construction, if a field holds another type than its annotation, or no value of its literal.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, expected in _types_of(type(self)).items():  # type: ignore[arg-type]  # a class can be hashed
            if not _fits(value := getattr(self, name), expected):
                allowed = f" (allowed: {', '.join(map(repr, get_args(expected)))})" if _is_literal(expected) else ""
                raise ValueError(f"{type(self).__name__}.{name} is {value!r:.60}{allowed}")


def known_fields(kind: type[Any], stored: Any) -> dict[str, Any]:
    """The entries of ``stored`` that are fields of a dataclass.

    Raises:
        ValueError: it is no dict.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"a {kind.__name__} is {stored!r:.60}")
    known = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in stored.items() if name in known}


@functools.cache
def _types_of(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_literal(expected: Any) -> bool:
    return get_origin(expected) is Literal


def _fits(value: Any, expected: Any) -> bool:
    if get_origin(expected) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(expected))
    if _is_literal(expected):
        return value in get_args(expected)
    if expected is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, expected)
