"""Checks that plain values, as JSON gives them, have the types that annotations name."""

from __future__ import annotations

import functools
import reprlib
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    return _check(expected)(value)


# Made once for each type: a manifest of 10,000 tensors has 200,000 values.
@functools.cache
def _check(expected: Any) -> Callable[[Any], bool]:
    """The check that `fits` makes of a value."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if typing.is_typeddict(expected):
        return _check_entries(expected)
    if origin in (typing.Union, types.UnionType):
        checks = [_check(one) for one in arguments]
        plain = {str, bool, types.NoneType}.intersection(arguments)  # most values are of such a type
        return lambda value: type(value) in plain or any(check(value) for check in checks)
    if expected is float:
        return _is_float
    if expected is int:
        # Beyond 64 bits no column can hold it. True and False are ints to Python, but no numbers here.
        return lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if expected is types.NoneType:
        return lambda value: value is None
    if expected in (str, bool):
        return lambda value: isinstance(value, expected)
    if origin in (list, tuple):
        item = _check(arguments[0])
        return lambda value: isinstance(value, list | tuple) and all(map(item, value))
    if origin is dict:
        key, item = map(_check, arguments)
        return lambda value: isinstance(value, dict) and all(key(k) and item(v) for k, v in value.items())
    # An annotation that is no class fits every value: this looks for damage, and is no type checker.
    anything = expected is Any or not isinstance(expected, type)
    return lambda value: anything or isinstance(value, expected)


def _check_entries(kind: Any) -> Callable[[Any], bool]:
    """The check of a TypedDict."""
    checks = [(name, _check(hint)) for name, hint in _hints(kind).items()]
    required = kind.__required_keys__

    def check(value: Any) -> bool:
        if not isinstance(value, dict) or not value.keys() >= required:
            return False
        for name, one in checks:  # noqa: SIM110 (a generator would take twice the time)
            if name in value and not one(value[name]):
                return False
        return True

    return check


def _is_float(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # Python's integers have no end
    return isinstance(value, float) or value in NON_FINITE


def shown(value: Any, length: int = 40) -> str:
    """The value as an error message shows it, cut after ``length`` characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
