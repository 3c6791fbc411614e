"""Numbers that a caller gives: what is none is refused by its name, and numpy's numbers become Python's."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, Literal, overload

from tvlars_probe.errors import UserError


@overload
def whole(name: str, given: Any, what: str, *, least: int | None = ..., optional: Literal[False] = ...) -> int: ...
@overload
def whole(name: str, given: Any, what: str, *, least: int | None = ..., optional: bool) -> int | None: ...
def whole(name: str, given: Any, what: str, *, least: int | None = 0, optional: bool = False) -> int | None:
    """A whole number, Python's or numpy's; never a bool, nor a float.

    Args:
        name: of the argument.
        given: what was given.
        what: what it is, as "a number of samples".
        least: the least that is allowed; None for any.
        optional: whether None may be given, which is returned.

    Raises:
        UserError: it is none, or below the least.
    """
    if optional and given is None:
        return None
    is_whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not is_whole or (least is not None and given < least):
        range_of = "" if least is None else f" of {least} or more"
        or_none = ", or None" if optional else ""
        raise UserError(f"{name}={given!r:.60}: give {what}, a whole one{range_of}{or_none}")
    return int(given)


def share(name: str, given: Any, what: str) -> float:
    """A number above 0 and at most 1, Python's or numpy's.

    Args:
        name: of the argument.
        given: what was given.
        what: what it is a share of.

    Raises:
        UserError: it is none.
    """
    value = real(given)
    if not 0 < value <= 1:
        raise UserError(f"{name}={given!r:.60} is no share of {what} (allowed: above 0, at most 1)")
    return value


def check_level(level: float) -> None:
    """Refuse what is no level of an interval.

    Raises:
        UserError: it isn't between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level:g} is no level of an interval (allowed: above 0, below 1, such as 0.95)")


def real(given: Any) -> float:
    """A number as a float; NaN for what is no number, as a bool or a text."""
    return float(given) if not isinstance(given, bool) and isinstance(given, Real) else math.nan
