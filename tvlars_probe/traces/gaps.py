"""Stretches of steps that a table lacks, and stretches that nothing covers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps of a table.

    Attributes:
        table: its name.
        first_step: the first of them.
        last_step: the last of them; None for all that follow.
    """

    table: str
    first_step: int
    last_step: int | None

    @property
    def end(self) -> int:
        """The last step, as a number that every step is at most where there is none."""
        return sys.maxsize if self.last_step is None else self.last_step

    def covers(self, other: Stretch) -> bool:
        """Whether the other one lies in this one."""
        return self.table == other.table and self.first_step <= other.first_step and self.end >= other.end

    def length(self, total: int) -> int:
        """Number of its steps, of a run of ``total``."""
        return (total - 1 if self.last_step is None else self.last_step) - self.first_step + 1


@dataclass(frozen=True, slots=True)
class Gap(Stretch):
    """Steps that a table lacks.

    Attributes:
        reason: why.
    """

    reason: str

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Gap:
        """A gap as it stands in a manifest."""
        return cls(stored["table"], stored["first_step"], stored["last_step"], stored["reason"])

    def before(self, step: int) -> Gap | None:
        """What of it lies before ``step``; None if nothing does."""
        return None if self.first_step >= step else replace(self, last_step=min(self.end, step - 1))


def holes(spans: Iterable[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The stretches of steps from ``first`` to ``last`` that none of the spans covers; a span's ends belong to it."""
    for start, end in sorted(spans):
        if first < start and first <= last:
            yield first, min(start - 1, last)
        first = max(first, end + 1)
    if first <= last:
        yield first, last
