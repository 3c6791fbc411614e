"""In which steps to probe: every n-th, or ever more rarely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tvlars_probe.admission.numbers import whole

PER_DECADE = 10
"""Steps that `Logarithmic` probes in each decade 10^k <= step < 10^(k + 1), from k = 1 on."""


class Cadence(Protocol):
    """Decides for each step whether it is probed."""

    def due(self, step: int) -> bool:
        """Whether the state before update ``step`` is probed."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Steps 0, n, 2n, ..."""

    n: int

    def due(self, step: int) -> bool:
        return step % self.n == 0


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """Every step below 10, then ten in each decade: dense where warm-up matters."""

    def due(self, step: int) -> bool:
        if step < PER_DECADE:
            return True
        # A step is due if the step before it lies in another tenth of a decade. The 1e-9 guards against a log10 that
        # rounds a power of ten to just below its exponent.
        place, before = (math.floor(PER_DECADE * math.log10(s) + 1e-9) for s in (step, step - 1))
        return place != before


def cadence(text: str | int) -> Cadence:
    """Return the cadence that ``text`` stands for: a number n of steps is `Every`, "log" is `Logarithmic`.

    Raises:
        UserError: it is neither a whole number of 1 or more nor "log".
    """
    if isinstance(text, str) and text == "log":
        return Logarithmic()
    try:
        given: str | int = int(text) if isinstance(text, str) else text  # a word of the command line
    except ValueError:
        given = text
    return Every(whole("every", given, "'log' or a number of steps", least=1))
