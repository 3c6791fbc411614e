"""When to probe: predicates on the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tvlars_probe.errors import UserError

PER_DECADE = 10


class Cadence(Protocol):
    """Says of each step whether it is probed."""

    def due(self, step: int) -> bool:
        """Whether the state before update ``step`` is probed."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Steps 0, n, 2n, ..."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"probing every {self.n} steps isn't possible (allowed: 1 or more, or 'log')")

    def due(self, step: int) -> bool:
        return step % self.n == 0


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """Every step below 10, then ten in each decade: dense where warm-up matters."""

    def due(self, step: int) -> bool:
        if step < PER_DECADE:
            return True
        place, before = (math.floor(PER_DECADE * math.log10(s) + 1e-9) for s in (step, step - 1))
        return place != before


def cadence(text: str | int) -> Cadence:
    """A number of steps, or "log".

    Raises:
        UserError: it is neither.
    """
    if str(text) == "log":
        return Logarithmic()
    try:
        return Every(int(text))
    except ValueError:
        raise UserError(f"probing every {text!r} isn't possible (allowed: a number of steps, or 'log')") from None
