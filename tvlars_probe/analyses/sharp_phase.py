"""Did a run enter a sharp phase, and did it leave it again?

A *sharp phase* is a rise of the sharpness to at least 1/f times the lowest value before it. It is left where the
sharpness ends below f times its top; f is a share, a half by default. Of several rises the one counts that the end is
in, which is at least 1/f times the lowest value of all; where the end is in none, the largest. The fall from the
initial weights on is no phase: the outputs of a network that has learned nothing are small, and every change is large
beside them.

Only ratios of a curve's own values count, so that the answer is as invariant as the curve is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.verdict import CANT_TELL, Figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIKE = 1.01
"""Of rises, and of lowest values, that differ by less than this factor the first is taken: rounding doesn't choose."""

REMEDY = "tvlars-probe sharpness RUN --operator adaptive --checkpoint all"
"""The command that measures what an answer takes."""

TRAPPED, ESCAPED, NEVER_SHARP = "trapped", "escaped", "never sharp"


@dataclass(frozen=True, kw_only=True)
class SharpPhase:
    """The rise of a curve that counts, and what became of it.

    Attributes:
        count: number of known values.
        lowest: the lowest value before the top; NaN where no value is known.
        low_step: its step.
        top: the value that is its largest multiple of the lowest one before it.
        top_step: its step.
        end: median of the late values.
        rise: top/lowest, 1 or more, up to a share of 1 %, within which tops count as alike.
        share: end/top.
        state: `TRAPPED`, `ESCAPED`, `NEVER_SHARP` or `CANT_TELL`.
    """

    count: int
    lowest: float
    low_step: float
    top: float
    top_step: float
    end: float
    rise: float
    share: float
    state: str


def sharp_phase(
    step: NDArray[np.float64],
    value: NDArray[np.float64],
    error: NDArray[np.float64],
    *,
    late: float,
    least: int,
    escaped: float,
) -> SharpPhase:
    """Find the rise that a curve's end is in, or else its largest one, and tell whether it was held.

    Args:
        step: steps of the measurements, ascending, (N,).
        value: the sharpness, (N,); values that aren't above 0 count as unknown.
        error: of each value, absolute; NaN counts as none. Where the errors leave an answer open it can't be told.
        late: the end is the median over this last share of the range of steps.
        least: fewest values with which an answer is given.
        escaped: f, 0 < f <= 1.
    """
    known = value > 0
    at, curve = step[known], value[known]
    doubt = np.nan_to_num(error[known]) / curve
    if not len(curve):
        nothing = dict.fromkeys(("lowest", "low_step", "top", "top_step", "end", "rise", "share"), np.nan)
        return SharpPhase(**nothing, count=0, state=CANT_TELL)
    is_late = at >= step[-1] - late * (step[-1] - step[0])
    end = float(np.median(curve[is_late])) if is_late.any() else np.nan
    lowest = np.minimum.accumulate(curve)
    rises = curve / lowest
    # A new lowest value begins another rise. If the end is up in the last one, that is what the run is in, however high
    # an earlier one was.
    is_up = end >= lowest[-1] / escaped
    begin = int(curve.argmin()) if is_up else 0
    highest = float(rises[begin:].max())
    top = begin + int((rises[begin:] >= highest / ALIKE).argmax())
    low = int((curve[: top + 1] <= curve[: top + 1].min() * ALIKE).argmax())
    rise, share = highest, float(end / curve[top])
    of_rise, of_share = doubt[top] + doubt[low], doubt[top] + max(doubt[is_late], default=0.0)
    if len(curve) < least or not is_late.any():
        state = CANT_TELL
    elif rise * (1 + of_rise) < 1 / escaped:
        state = NEVER_SHARP
    elif rise * (1 - of_rise) < 1 / escaped or share * (1 - of_share) < escaped <= share * (1 + of_share):
        state = CANT_TELL
    else:
        state = TRAPPED if share >= escaped else ESCAPED
    return SharpPhase(
        lowest=float(curve[low]), low_step=float(at[low]), top=float(curve[top]), top_step=float(at[top]), end=end,
        rise=rise, share=share, count=len(curve), state=state,
    )  # fmt: skip


_FIGURES = {
    "end_over_peak": ("share", "adaptive sharpness at the end over the top of the rise that counts"),
    "early_peak": ("top", "adaptive sharpness at the top of the rise that counts"),
    "end": ("end", "adaptive sharpness at the end, median"),
    "rise": ("rise", "that top over the lowest adaptive sharpness before it"),
    "lowest": ("lowest", "lowest adaptive sharpness before that top"),
}
"""By name of the figure its attribute, and what it measures."""


def figures_of(phase: SharpPhase | None) -> tuple[Figure, ...]:
    """The figures that a verdict rests on; without values where adaptive sharpness isn't on record."""
    return tuple(
        Figure(f"adaptive_{name}", None if phase is None else getattr(phase, attribute), "1", meaning)
        for name, (attribute, meaning) in _FIGURES.items()
    )


def reason_of(phase: SharpPhase, on: str, *, least: int, escaped: float) -> str:
    """Why a phase has its state, in a sentence.

    Args:
        phase: the phase.
        on: what the curve was measured on, in words.
        least: fewest values with which an answer is given.
        escaped: f.
    """
    if phase.count < least or not np.isfinite(phase.share):
        return (
            f"it takes {least} measurements of adaptive sharpness, the late steps among them, and {phase.count} are on "
            f"record: {REMEDY} adds those of the checkpoints that were kept."
        )
    rise = (
        f"{phase.lowest:.3g} at step {phase.low_step:,.0f} to {phase.top:.3g} at step {phase.top_step:,.0f} "
        f"({phase.rise:.3g} times)"
    )
    end = f"it ends at {phase.end:.3g} ({phase.share:.3g} of that)"
    if phase.state == NEVER_SHARP:
        return (
            f"adaptive sharpness never rose to {1 / escaped:.3g} times its lowest value so far: the largest rise is "
            f"from {rise}, {on}."
        )
    told = f"adaptive sharpness rose from {rise}, and {end}, {on}"
    if phase.state == CANT_TELL:
        return f"the figures' errors leave it open: {told}; a smaller --tol, or more --draws, leave less."
    return f"{told}."
