from __future__ import annotations

import numpy as np
import pytest

from tvlars_probe.live.pace import LENGTH, Pace


def pace_of(gaps: list[float], *, first: int = 0) -> Pace:
    """Steps from ``first`` on, so many seconds apart."""
    times = np.cumsum([0.0, *gaps]) * 1e6
    pace = Pace()
    pace.add(np.arange(first, first + len(times)), times.astype(np.int64))
    return pace


def rate(pace: Pace, segment: int = 0, breaks: tuple[int, ...] = ()) -> float | None:
    return pace.rate(segment=segment, breaks=breaks)


def test_steps_per_second() -> None:
    assert rate(pace_of([0.25] * 40)) == pytest.approx(4)
    assert rate(pace_of([0.1, 0.3] * 20)) == pytest.approx(5)


@pytest.mark.parametrize("gaps", [[], [0.0] * 9, [-1.0] * 9], ids=["one step", "a clock that stands", "set back"])
def test_none_where_nothing_tells(gaps: list[float]) -> None:
    assert rate(pace_of(gaps)) is None
    assert rate(Pace()) is None


def test_an_evaluation_a_sleep_and_an_interruption_are_no_steps() -> None:
    assert rate(pace_of([0.5] * 10 + [20.0] + [0.5] * 10), breaks=(11,)) == pytest.approx(2)
    assert rate(pace_of([0.5] * 10 + [9000.0] + [0.5] * 10)) == pytest.approx(2)
    assert rate(pace_of([0.5] * 20 + [30.0] + [0.25] * 3), segment=21) == pytest.approx(4)


def test_a_loop_that_waits_for_its_device_now_and_then_is_as_fast_as_with_the_waits() -> None:
    assert rate(pace_of(([0.01] * 9 + [0.91]) * 20)) == pytest.approx(10, rel=0.01)


def test_only_the_last_steps_count_and_unrecorded_ones_count_too() -> None:
    assert rate(pace_of([9.0] * LENGTH + [0.5] * LENGTH)) == pytest.approx(2)
    pace = Pace()
    pace.add(np.arange(0, 100, 10), np.arange(10) * 1_000_000)
    assert rate(pace) == pytest.approx(10)


def test_a_cut_forgets_the_step_and_later_ones() -> None:
    pace = pace_of([1.0] * 9)
    pace.cut(5)
    assert pace.last_time == 4_000_000
    pace.cut(0)
    assert pace.last_time is None
