"""A step's own time, and the time that the recorder and its probes take in it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class StepClock:
    """Tells a step's own time from the time that the recorder and its probes take in it.

    Times are those of `time.perf_counter`, in seconds: setting the system's clock doesn't change them.

    Attributes:
        mark: when the last step ended.
        left_out: seconds since then that aren't the step's own.
        probes: the part of them that the recorder took: its hooks, with the probes and flushes in them.
    """

    mark: float = field(default_factory=time.perf_counter)
    left_out: float = 0.0
    probes: float = 0.0

    def start(self) -> None:
        """Begin the next step now."""
        self.left_out = self.probes = 0.0
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent inside out of the next step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.left_out += time.perf_counter() - start

    def probed(self, seconds: float) -> None:
        """Count ``seconds`` of the time since the last step as the recorder's."""
        self.left_out += seconds
        self.probes += seconds

    def since_mark(self, end: float) -> float:
        """The step's own seconds from the last step's end to ``end``."""
        # A pause that begins before the mark and ends after it is left out whole: then this would be negative.
        return max(end - self.mark - self.left_out, 0.0)

    def mark_end(self) -> float:
        """End the step now, and return the seconds that the recorder took in it."""
        probes, self.left_out, self.probes = self.probes, 0.0, 0.0
        self.mark = time.perf_counter()
        return probes
