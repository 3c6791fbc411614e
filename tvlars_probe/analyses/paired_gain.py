"""Did warm-up help? The outcome of pairs of runs that differ in warm-up alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvlars_probe.analyses.intervals import Mean

if TYPE_CHECKING:
    from collections.abc import Sequence

NEEDED, HARMFUL, NO_DIFFERENCE, UNKNOWN = "needed", "harmful", "no difference", "unknown"
OUTCOMES = (NEEDED, HARMFUL, NO_DIFFERENCE, UNKNOWN)

LEAST_GAIN = 0.5
"""A mean gain of fewer points is too small for warm-up to be called needed, or harmful."""

SAME = 1.0
"""An interval within so many points of zero is no difference."""


@dataclass(frozen=True, slots=True)
class PairedGain:
    """What warm-up changed at one peak rate.

    Attributes:
        gain: held-out accuracy with warm-up minus the one without, in percentage points: mean over the seeds, with
            Student's 95 % interval.
        outcome: one of `OUTCOMES`. "needed": the interval lies above zero and the mean above `LEAST_GAIN`; "harmful":
            the mirror of that; "no difference": else, an interval within ± `SAME`; "unknown": everything else, fewer
            than two pairs included.
    """

    gain: Mean
    outcome: str

    @classmethod
    def of(cls, gains: Sequence[float]) -> PairedGain:
        """The outcome of the pairs' gains, one per seed."""
        gain = Mean.of(gains)
        low, high = gain.value - gain.half_width, gain.value + gain.half_width
        if low > 0 and gain.value > LEAST_GAIN:
            return cls(gain, NEEDED)
        if high < 0 and gain.value < -LEAST_GAIN:
            return cls(gain, HARMFUL)
        return cls(gain, NO_DIFFERENCE if low >= -SAME and high <= SAME else UNKNOWN)
