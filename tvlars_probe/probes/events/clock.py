"""Telling a step's own time from that of the probes in it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class StepClock:
    """Tells a step's own time from that of the probes in it.

    Attributes:
        mark: when the last step ended.
        left_out: seconds since then that aren't the step's.
        probes: seconds of them that were probes.
    """

    mark: float = field(default_factory=time.perf_counter)
    left_out: float = 0.0
    probes: float = 0.0

    def start(self) -> None:
        """The next step begins now."""
        self.left_out = self.probes = 0.0
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside isn't the next step's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.left_out += time.perf_counter() - start

    def probed(self, seconds: float) -> None:
        """These seconds since the last step were a probe's."""
        self.left_out += seconds
        self.probes += seconds

    def since_mark(self, end: float) -> float:
        """The step's own seconds from the last step's end to ``end``."""
        return max(end - self.mark - self.left_out, 0.0)

    def mark_end(self) -> float:
        """The step ends now; returns the seconds that probes took in it."""
        probes, self.left_out, self.probes = self.probes, 0.0, 0.0
        self.mark = time.perf_counter()
        return probes
