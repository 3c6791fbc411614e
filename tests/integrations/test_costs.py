"""The benchmark of the costs in trainers runs, and counts the calls of each trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.trainers import WARM_UP, Inside, figure_of
from tests.integrations.trainers import TRAINERS

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_hooks_share_of_a_step_is_found(trainer: str) -> None:
    figure = figure_of(trainer, "transformer", "SGD", "norms", batch_size=2, steps=2)
    assert 1 < figure.value < 2


def test_calls_within_calls_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.trainers.time.perf_counter", lambda: next(clock))
    inside = Inside()

    @inside.timed
    def log() -> None:
        next(clock)

    @inside.timed
    def on_step_end(call: Callable[[], None]) -> None:
        call()

    for _ in range(WARM_UP + 2):
        on_step_end(log)  # 0: begins; 1: log begins; 2: its work; 3: log ends; 4: ends
        next(clock)  # 5: outside
    share, seconds = inside.share()
    assert inside.seconds == 4 * (WARM_UP + 2)
    assert (share, seconds) == (4 / 2, 6)
