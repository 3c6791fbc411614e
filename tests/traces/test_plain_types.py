"""Plain values in messages."""

from __future__ import annotations

from typing import Any

import pytest

from tvlars_probe.traces.plain_types import fits, shown


@pytest.mark.parametrize("value", [1, None, "text", [1, 2, 3], {"a": [1]}, (1.5, "x"), {}, "é"])
def test_what_is_short_is_shown_as_python_writes_it(value: Any) -> None:
    assert shown(value) == repr(value)


def test_what_is_long_is_cut() -> None:
    assert shown("x" * 100) == "'" + "x" * 39 + "..."
    assert shown([*range(10**6)]) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1..."


def test_lists_that_hold_one_another_are_not_written_out() -> None:
    value: Any = ["ha", "ha"]
    for _ in range(60):
        value = [value, value]
    assert len(shown(value)) <= 43
    ring: list[Any] = []
    ring.append(ring)
    assert shown(ring).startswith("[[[")


def test_an_integer_beyond_all_floats_is_none() -> None:
    assert fits(10**300, float)
    assert not fits(10**400, float)
    assert not fits(-(10**400), float)
