"""Stretches of steps that a table lacks, and stretches that nothing covers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Stretch:
    """Successive steps of a table.

    Attributes:
        table: name of the table.
        first_step: the first step.
        last_step: the last step; None if the stretch has no end.
    """

    table: str
    first_step: int
    last_step: int | None

    @property
    def end(self) -> int:
        """The last step; without one, a number that no step exceeds."""
        return sys.maxsize if self.last_step is None else self.last_step

    def covers(self, other: Stretch) -> bool:
        """Whether all steps of the other stretch are also in this one."""
        return self.table == other.table and self.first_step <= other.first_step and self.end >= other.end

    def length(self, total: int) -> int:
        """The number of steps, in a run of ``total`` steps."""
        return (total - 1 if self.last_step is None else self.last_step) - self.first_step + 1


@dataclass(frozen=True, slots=True)
class Gap(Stretch):
    """Steps that a table lacks.

    Attributes:
        reason: why they are lacking.
    """

    reason: str

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Gap:
        """Make a gap of what a manifest holds."""
        return cls(stored["table"], stored["first_step"], stored["last_step"], stored["reason"])

    def before(self, step: int) -> Gap | None:
        """The part of the gap before ``step``; None if there is none."""
        return None if self.first_step >= step else replace(self, last_step=min(self.end, step - 1))


def holes(spans: Iterable[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The stretches of steps from ``first`` to ``last`` that no span covers. All ends are inclusive."""
    # At each turn ``first`` is the first step that the spans so far leave open.
    for start, end in sorted(spans):
        if first < start and first <= last:
            yield first, min(start - 1, last)
        first = max(first, end + 1)
    if first <= last:
        yield first, last
