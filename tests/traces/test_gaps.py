from __future__ import annotations

import pytest

from tvlars_probe.traces.gaps import Gap, holes


def test_holes_are_what_no_span_covers() -> None:
    assert [*holes([(2, 3), (6, 9), (3, 4)], 0, 12)] == [(0, 1), (5, 5), (10, 12)]
    assert [*holes([(0, 9)], 2, 5)] == []
    assert [*holes([(7, 9)], 2, 5)] == [(2, 5)]
    assert [*holes([], 3, 2)] == []


@pytest.mark.parametrize(
    ("step", "expected"), [(5, None), (7, (5, 6)), (20, (5, 9))], ids=["none of it", "a part of it", "all of it"]
)
def test_what_of_a_gap_lies_before_a_step(step: int, expected: tuple[int, int] | None) -> None:
    before = Gap("layers", 5, 9, "lost").before(step)
    assert (before and (before.first_step, before.last_step)) == expected


def test_a_gap_without_an_end_covers_all_that_follows() -> None:
    endless = Gap("layers", 5, None, "storage failed")
    assert endless.covers(Gap("layers", 7, 1000, ""))
    assert not endless.covers(Gap("layers", 4, 6, ""))
    assert not endless.covers(Gap("steps", 7, 1000, ""))
    assert not Gap("layers", 5, 9, "").covers(endless)
    assert (endless.length(12), Gap("layers", 5, 9, "").length(12)) == (7, 5)
    assert endless.before(8) == Gap("layers", 5, 7, "storage failed")
