"""Whether plain values, as JSON gives them, are of the types that annotations say."""

from __future__ import annotations

import functools
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NON_FINITE = ("inf", "-inf", "nan")
"""How floats that JSON doesn't know stand in a manifest."""


def mismatches(kind: type[Any], values: Mapping[str, Any]) -> list[str]:
    """The fields of a dataclass or TypedDict whose value in ``values`` has another type, with what was found there.

    Fields that aren't given, and names that are no fields, are passed over. An int is a float too; a list a tuple.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    names = [name for name in hints if name in values]
    return [f"{name} is {shown(values[name])}" for name in names if not fits(values[name], hints[name])]


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def fits(value: Any, expected: Any) -> bool:
    """Whether a plain value is of a type made of the plain ones, unions, lists, tuples and dicts, or of a class."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if typing.is_typeddict(expected):
        return (
            isinstance(value, dict) and value.keys() >= expected.__required_keys__ and not mismatches(expected, value)
        )
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if expected is float:
        return (isinstance(value, float | int) and not isinstance(value, bool)) or value in NON_FINITE
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if expected in (str, bool, types.NoneType):
        return value is None if expected is types.NoneType else isinstance(value, expected)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    return expected is Any or not isinstance(expected, type) or isinstance(value, expected)


def shown(value: Any, length: int = 40) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
