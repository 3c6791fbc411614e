"""What a check finds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tvlars_probe.traces.gaps import Stretch

Repair = Literal["set aside", "write anew", "note the gap"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a run.

    Attributes:
        path: the file or folder, below the run.
        problem: what is wrong.
        repair: what ``--repair`` does about it; None where it can't do anything.
        gap: what is missing, where the gap can be noted.
    """

    path: str
    problem: str
    repair: Repair | None = None
    gap: Stretch | None = None


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        faults: what is wrong.
        notes: what a reader should know though nothing is wrong.
        parts: readable parts.
        steps: rows of the table ``steps``.
        checkpoints: loadable ones.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: int = 0
    steps: int = 0
    checkpoints: int = 0


def problem(error: Exception) -> str:
    """What an error says is wrong, without the advice to run a check."""
    return re.split(r"[:;,] 'tvlars-probe check", str(error))[0]
