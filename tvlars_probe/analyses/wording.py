"""Counts and lists of names in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def counted(count: int, what: str) -> str:
    """A count with its noun: "1 run", "2,000 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def counted_or_no(count: int, what: str) -> str:
    """`counted` as the subject of a sentence, where none is "no run"."""
    return counted(count, what) if count else f"no {what}"


def batches(sizes: Sequence[float]) -> str:
    """Batch sizes in a sentence: "batch 64", "batches 64 and 1,024"."""
    return f"{'batch' if len(sizes) == 1 else 'batches'} {some_of([f'{size:,.0f}' for size in sizes])}"


def percent(level: float) -> str:
    """The level of an interval: "95 %", "99.9 %"."""
    return f"{100 * level:.10g} %"


def some_of(names: Sequence[str], *, most: int = 5, room: int = 60) -> str:
    """The first names and the number of the others: "a", "a and b", "a, b, c, d, e and 2 more".

    Args:
        names: at least one.
        most: how many are named.
        room: how many characters the names may take; one is named, however long.
    """
    named = list(names[:most])
    while len(named) > 1 and sum(map(len, named)) > room:
        named.pop()
    others = len(names) - len(named)
    if not others and len(named) > 1:
        return f"{', '.join(named[:-1])} and {named[-1]}"
    return ", ".join(named) + (f" and {others:,} more" if others else "")


def setting_text(value: object) -> str:
    """The value of a setting in a label; "unset" where the run's configuration doesn't tell it."""
    if value is None:
        return "unset"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
