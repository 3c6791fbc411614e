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
        path: the file or folder, relative to the run directory.
        problem: what is wrong.
        repair: what ``--repair`` does about it; None if it can do nothing.
        gap: the steps that are missing, if they can be noted as a gap.
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
        notes: what a reader should know, although nothing is wrong.
        parts: number of parts that can be read.
        steps: number of different steps in the table ``steps``.
        checkpoints: number of checkpoints that can be loaded.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: int = 0
    steps: int = 0
    checkpoints: int = 0


def problem(error: Exception) -> str:
    """What an error says is wrong, without its advice to run a check."""
    # All advice begins with these words: `footers.remedy`, and the manifest's.
    return re.split(r"[:;,] 'tvlars-probe check", str(error))[0]
