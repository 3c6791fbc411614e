"""What the loss did in the early steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.course import lost_at

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.warmup.thresholds import Thresholds


@dataclass(frozen=True, kw_only=True)
class EarlyLoss:
    """How the loss did in the early steps.

    Attributes:
        rise: the highest early loss over the first one; infinite where it was infinite, None where no loss is recorded.
        peak_step: the step of that highest loss.
        bad_step: the first step whose loss was not finite, early or late; None if all were finite.
        recovered_after: updates until the loss was first below its first value again, after its highest; None if it
            never rose above that value, or never fell below it again.
    """

    rise: float | None
    peak_step: int | None
    bad_step: int | None
    recovered_after: int | None


def early_loss(steps: pd.DataFrame, facts: RunFacts, thresholds: Thresholds) -> EarlyLoss:
    """Read `EarlyLoss` off the table ``steps`` (columns ``step`` and ``loss``); updates count from its first row."""
    # pandas reads null, where no loss was logged, as NaN: in the table a loss that is NaN can't be told from that.
    told = steps[steps["loss"].notna() | steps["loss"].isin([np.inf])]
    loss, at = told["loss"].to_numpy(float), told["step"].to_numpy()
    bad = [*at[~np.isfinite(loss)][:1].tolist(), lost_at(steps, facts)]
    bad_step = min((step for step in bad if step is not None), default=None)
    if not len(loss):
        return EarlyLoss(rise=None, peak_step=None, bad_step=bad_step, recovered_after=None)
    first = int(steps["step"].iloc[0])
    early = loss[at - first < thresholds.early(facts)]
    peak = int(np.argmax(np.nan_to_num(early, nan=np.inf)))
    back = np.flatnonzero(loss[peak:] < loss[0])
    harmed = loss[peak] > loss[0]
    return EarlyLoss(
        # Infinity over itself, where the first loss was infinite, is none.
        rise=math.inf if np.isinf(loss[peak]) else float(loss[peak] / loss[0]) if loss[0] else None,
        peak_step=int(at[peak]),
        bad_step=bad_step,
        recovered_after=int(at[peak + back[0]] - first) if harmed and len(back) else None,
    )
