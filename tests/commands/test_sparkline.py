from __future__ import annotations

import math

import pytest

from tvlars_probe.commands.sparkline import sparkline


def line(values: list[float], width: int) -> tuple[str, str]:
    return sparkline([*enumerate(values)], width)


def test_a_block_is_as_high_as_its_value() -> None:
    assert line([float(k) for k in range(8)], 8) == ("▁▂▃▄▅▆▇█", "0 to 7")
    assert line([1.0, 10.0, 100.0], 3) == ("▁▅█", "1 to 100, log")


def test_a_spike_among_many_steps_is_seen() -> None:
    values = [1.0] * 1000
    values[503] = 9.0
    drawn, span = line(values, 20)
    assert drawn == "▁" * 10 + "█" + "▁" * 9
    assert span == "1 to 9"


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_marked_and_no_part_of_the_scale(odd: float) -> None:
    assert line([1.0, odd, 2.0], 3) == ("▁×█", "1 to 2")
    assert line([1.0, odd, 2.0], 1) == ("×", "")
    assert line([odd, odd], 2) == ("××", "")


def test_steps_without_a_value_go_on_as_before() -> None:
    assert sparkline([(0, 1.0), (9, 2.0)], 5) == ("▁▁▁▁█", "1 to 2")


def test_few_points_none_and_no_room() -> None:
    assert line([3.0], 4) == ("▁▁▁▁", "3 to 3")
    assert line([], 4) == line([1.0], 0) == ("", "")


def test_the_largest_and_the_smallest_floats() -> None:
    assert line([-1.7e308, 1.7e308], 2)[0] == "▁█"
    assert line([5e-324, 1.7e308], 2) == ("▁█", "4.94e-324 to 1.7e+308, log")
    assert sparkline([(0, 1.0), ((1 << 63) - 1, 2.0)], 2)[0] == "▁█"
