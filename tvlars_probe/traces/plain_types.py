"""Checks that plain values, as JSON gives them, have the types that annotations name."""

from __future__ import annotations

import functools
import reprlib
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NON_FINITE = ("inf", "-inf", "nan")
"""How a manifest spells the floats that JSON doesn't know."""


# Only so much of a value is written out as can be shown: lists may hold one another, or a million numbers.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 14
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def mismatches(kind: type[Any], values: Mapping[str, Any]) -> list[str]:
    """The fields whose value has another type than annotated, each with the value found, for an error message.

    Args:
        kind: a dataclass or TypedDict.
        values: by name. Fields without a value, and names of no field, are passed over.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    names = [name for name in hints if name in values]
    return [f"{name} is {shown(values[name])}" for name in names if not fits(values[name], hints[name])]


# Cached, because get_type_hints evaluates every annotation anew.
@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def fits(value: Any, expected: Any) -> bool:
    """Whether a plain value has a type.

    An int is also a float, and a list also a tuple, as in JSON. A name in `NON_FINITE` is a float too.

    Args:
        value: as JSON gives it.
        expected: a plain type, a TypedDict, a union, list, tuple or dict of such, or another class. A tuple's items
            are all held to its first type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if typing.is_typeddict(expected):
        return (
            isinstance(value, dict) and value.keys() >= expected.__required_keys__ and not mismatches(expected, value)
        )
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    # True and False are ints to Python, but no numbers here.
    if expected is float:
        if isinstance(value, int) and not isinstance(value, bool):
            return abs(value) <= sys.float_info.max  # Python's integers have no end
        return isinstance(value, float) or value in NON_FINITE
    if expected is int:
        # Beyond 64 bits no column can hold it.
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if expected in (str, bool, types.NoneType):
        return value is None if expected is types.NoneType else isinstance(value, expected)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    # An annotation that is no class fits every value: this looks for damage, and is no type checker.
    return expected is Any or not isinstance(expected, type) or isinstance(value, expected)


def shown(value: Any, length: int = 40) -> str:
    """The value as an error message shows it, cut after ``length`` characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
