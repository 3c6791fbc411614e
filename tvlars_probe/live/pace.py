"""How fast a run steps, by the times of its recent steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

LENGTH = 2048
"""Steps, the latest ones, whose times count."""


class Pace:
    """The times at which recent steps ended."""

    def __init__(self) -> None:
        self._steps: NDArray[np.int64] = np.empty(0, np.int64)
        self._times: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def last_time(self) -> int | None:
        """When the last step ended, in microseconds since 1970; None where no step has a time."""
        return int(self._times[-1]) if len(self._times) else None

    def add(self, steps: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Add steps, in order, and the times in microseconds at which they ended."""
        self._steps = np.concatenate([self._steps, steps])[-LENGTH:]
        self._times = np.concatenate([self._times, times])[-LENGTH:]

    def cut(self, step: int) -> None:
        """Forget ``step`` and later ones."""
        count = int(np.searchsorted(self._steps, step))
        self._steps, self._times = self._steps[:count], self._times[:count]

    def rate(self, *, segment: int, breaks: Iterable[int]) -> float | None:
        """Steps per second since the last interruption, without pauses; None where it isn't known.

        Args:
            segment: the first step since the last interruption.
            breaks: steps before which other things than training took time: an evaluation after an epoch.
        """
        within = slice(int(np.searchsorted(self._steps, segment)), None)
        steps, times = self._steps[within], self._times[within]
        seconds, counts = np.diff(times) / 1e6, np.diff(steps)
        # A clock that was set back tells nothing.
        usual = (seconds >= 0) & ~np.isin(steps[1:], np.fromiter(breaks, np.int64))
        seconds, counts = seconds[usual], counts[usual]
        if len(seconds) >= 8:
            longest = int(np.argmax(seconds))
            # One gap that takes more time than all the others is a machine that slept, or a checkpoint's write.
            if seconds[longest] > seconds.sum() / 2:
                seconds, counts = np.delete(seconds, longest), np.delete(counts, longest)
        whole: Any = seconds.sum()
        return float(counts.sum() / whole) if whole > 0 else None
