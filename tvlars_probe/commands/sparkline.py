"""A curve in one line of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
NOT_FINITE = "×"
"""What stands where a value isn't finite."""

_LOGARITHMIC_FROM = 30.0
"""The largest value over the smallest from which on the scale is logarithmic."""


def sparkline(points: Sequence[tuple[int, float]], width: int) -> tuple[str, str]:
    """The curve as blocks, and what they span.

    A block is as high as the highest value of its steps, so that no spike is lost.

    Args:
        points: pairs of step and value, in order of steps.
        width: characters of the line.

    Returns:
        the line, and from the lowest to the highest block "0.12 to 2.3", with ", log" where its scale is logarithmic;
        both empty where there is no point.
    """
    if not points or width < 1:
        return "", ""
    highest = _highest(points, width)
    values = [value for value in highest if value is not None and math.isfinite(value)]
    if not values:
        return "".join(" " if value is None else NOT_FINITE for value in highest), ""
    low, high = min(values), max(values)
    is_log = low > 0 and high / low >= _LOGARITHMIC_FROM
    scale = math.log if is_log else float
    bottom, top = scale(low), scale(high)
    # Of the largest numbers the difference is beyond all floats: halves of them are not.
    span = top / 2 - bottom / 2
    line, last = "", " "
    for value in highest:
        if value is not None and not math.isfinite(value):
            last = NOT_FINITE
        elif value is not None:
            place = 0 if span <= 0 else int((scale(value) / 2 - bottom / 2) / span * (len(BLOCKS) - 1) + 0.5)
            last = BLOCKS[place]
        line += last
    return line, f"{low:.3g} to {high:.3g}{', log' if is_log else ''}"


def _highest(points: Sequence[tuple[int, float]], width: int) -> list[float | None]:
    """The highest value of each of ``width`` stretches of steps; one that isn't finite counts as higher than any."""
    first, last = points[0][0], points[-1][0]
    highest: list[float | None] = [None] * width
    for step, value in points:
        place = (step - first) * width // (last - first + 1)
        before = highest[place]
        if before is None or not math.isfinite(value) or (math.isfinite(before) and value > before):
            highest[place] = value
    return highest
