from __future__ import annotations

import numpy as np
import pytest

from tvlars_probe.analyses.spans import settled_from, spans


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], []), ([7], [1]), ([0, 1, 2], [1, 1, 1]), ([0, 5, 10], [5, 5, 5]), ([3, 4, 14, 44], [1, 10, 30, 30])],
)
def test_a_recorded_step_stands_for_the_updates_until_the_next_one(steps: list[int], expected: list[int]) -> None:
    assert spans(np.array(steps, np.int64)).tolist() == expected


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("count", [1, 2, 5, 20, 101])
def test_where_every_update_is_recorded_the_share_is_one_of_the_rows(count: int, share: float) -> None:
    assert settled_from(np.arange(count) + 30, share) == int(count * share)


def test_the_share_is_one_of_the_updates() -> None:
    steps = np.array([*range(100), *range(100, 300, 10)])
    assert steps[settled_from(steps, 0.5)] == 150
    assert settled_from(np.arange(0), 0.5) == 0
