"""The rules once more, step by step and tensor by tensor, as docs/guides/findings.md words them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Row:
    """One step: its loss (None where not told), its ‖g‖, its φ, and by tensor the figures that were recorded.

    ``before_clipping`` says whether that ‖g‖ is one before clipping. ``batch``, ``signal`` and ``noise`` are the
    batch and the estimates of |G|² and tr Σ.
    """

    loss: float | None = None
    grad_norm: float = math.nan
    before_clipping: bool = False
    phi: float = math.nan
    batch: float = math.nan
    signal: float = math.nan
    noise: float = math.nan
    figures: dict[str, dict[str, float]] = field(default_factory=dict)


def spikes(values: list[float]) -> list[int]:
    """Where values begin to be beyond mean + 6σ of the (up to) 128 finite ones before, of which there must be 64."""
    before: list[float] = []
    found, open_ = [], False
    for place, value in enumerate(values):
        if not math.isfinite(value):
            continue
        is_spike = False
        if len(before) >= 64:
            last = before[-128:]
            mean = statistics.fmean(last)
            is_spike = value > mean + max(6 * statistics.pstdev(last), 1e-3 * abs(mean))
        if is_spike and not open_:
            found.append(place)
        open_ = is_spike
        before.append(value)
    return found


def dead(rows: list[Row]) -> list[int]:
    """Where φ begins to be below 1e-4 of its highest value so far."""
    highest, open_, found = 0.0, False, []
    for place, row in enumerate(rows):
        if math.isnan(row.phi):
            continue
        highest = max(highest, row.phi)
        if row.phi < 1e-4 * highest and not open_:
            found.append(place)
        open_ = row.phi < 1e-4 * highest
    return found


def episodes(
    rows: list[Row], judge: Callable[[dict[str, float], list[dict[str, float]]], bool | None]
) -> Iterator[tuple[int, str]]:
    """Where tensors begin to break a rule, in order of steps.

    Args:
        rows: the steps.
        judge: whether the figures of a step, of a tensor whose earlier ones are given, break the rule; None where it
            can't be judged.
    """
    past: dict[str, list[dict[str, float]]] = {}
    open_: set[str] = set()
    for place, row in enumerate(rows):
        for name, figures in row.figures.items():
            broken = judge(figures, past.setdefault(name, []))
            past[name].append(figures)
            if broken and name not in open_:
                yield place, name
            if broken is not None:
                (open_.add if broken else open_.discard)(name)


def vanished(figures: dict[str, float], past: list[dict[str, float]]) -> bool | None:
    """Whether the ratio, divided by φ, is below a millionth of the median of the last 64, of which there are 16."""

    def plain(one: dict[str, float]) -> float:
        if math.isnan(one["phi"]):
            return one["trust_ratio"]
        return one["trust_ratio"] / one["phi"] if one["phi"] >= 1e-30 else math.nan

    last = [value for one in past[-64:] if math.isfinite(value := plain(one))]
    return len(last) >= 16 and plain(figures) < 1e-6 * statistics.median(last)


def beyond_noise(rows: list[Row]) -> list[int]:
    """Where the batch begins to be far beyond the noise scale: the last step of each such stretch of 64 recorded ones.

    The mean of batch·|G|² − 2·tr Σ is above 4 of its standard errors. An episode ends in a stretch with a mean of zero
    or less.
    """
    found, open_, stretch = [], False, list[float]()
    for place, row in enumerate(rows):
        if not all(map(math.isfinite, (row.batch, row.signal, row.noise))):
            continue
        stretch.append(row.batch * row.signal - 2 * row.noise)
        if len(stretch) == 64:
            mean, error = statistics.fmean(stretch), statistics.stdev(stretch) / 8
            if mean > max(4 * error, 0.0):
                if not open_:
                    found.append(place)
                open_ = True
            elif mean <= 0:
                open_ = False
            stretch = []
    return found
