"""The ratio of two means with Fieller's interval, which has no upper end where the denominator may be zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two quantities that can't be negative, and its interval.

    Attributes:
        value: the ratio; NaN where the denominator can't be told from zero, or an estimate is below zero.
        low: lower end of the interval, 0 or more; NaN where nothing is known of the errors.
        high: upper end; infinite where the denominator can't be told from zero, NaN where nothing is known.
    """

    value: float
    low: float
    high: float

    @property
    def is_open(self) -> bool:
        """Whether the interval has no upper end."""
        return self.high == math.inf


UNKNOWN = Ratio(math.nan, math.nan, math.nan)
"""The ratio of what isn't known."""


def fieller(
    numerator: float, denominator: float, *, variances: tuple[float, float], covariance: float, quantile: float
) -> Ratio:
    """The interval of ρ = y/x from estimates of y ≥ 0 and x ≥ 0 (Fieller 1954).

    It holds each ρ ≥ 0 for which ŷ − ρ·x̂ is within ``quantile`` standard errors of zero::

        (ŷ − ρ·x̂)² ≤ t²·(s_yy − 2ρ·s_xy + ρ²·s_xx)

    which is a quadratic inequality in ρ. Its level is that of t, whatever the size of the errors, if the estimates are
    normal. Where x̂ is within t standard errors of zero, no ρ is too large. A negative x̂ counts as 0 for the interval:
    the set would be empty otherwise.

    Args:
        numerator: ŷ.
        denominator: x̂.
        variances: s_yy and s_xx, of the estimates.
        covariance: s_xy, of the estimates.
        quantile: t.
    """
    s_yy, s_xx = variances
    told = (numerator, denominator, s_yy, s_xx, covariance)
    if not all(map(math.isfinite, told)):
        return UNKNOWN
    # In units in which both are about 1: squares of small gradients would be below the least double.
    x_unit, y_unit = (max(abs(v), math.sqrt(max(s, 0.0))) for v, s in ((denominator, s_xx), (numerator, s_yy)))
    if x_unit == 0 or y_unit == 0:
        return UNKNOWN
    x, y = max(denominator, 0.0) / x_unit, numerator / y_unit
    t2 = quantile * quantile
    a = x * x - t2 * s_xx / x_unit / x_unit
    b = x * y - t2 * covariance / x_unit / y_unit
    c = y * y - t2 * s_yy / y_unit / y_unit
    unit = y_unit / x_unit
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0:
        low, high = (b - root) / a, (b + root) / a
        value = numerator / denominator if numerator > 0 else math.nan
        return Ratio(value, max(low, 0.0) * unit, max(high, 0.0) * unit)
    # The set is unbounded: from its only positive root on, or, where zero belongs to it, everything.
    low = 0.0
    if c > 0:
        low = c / (b + root) if b > 0 else float(np.inf if a == 0 else (b - root) / a)
    return Ratio(math.nan, max(low, 0.0) * unit, math.inf)
