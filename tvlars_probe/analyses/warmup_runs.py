"""The warm-up analysis of a recorded run: reads the columns it needs, keeps no matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.analyses.loading import epochs_of, facts_of, grid_of, steps_of
from tvlars_probe.analyses.warmup import COLUMNS, Warmup, analyse_warmup

if TYPE_CHECKING:
    from tvlars_probe.analyses.warmup_rule import Thresholds
    from tvlars_probe.traces.reader import Run


def warmup_of(
    run: Run, *, phase: str | None = None, thresholds: Thresholds | None = None
) -> tuple[Warmup, float | None]:
    """The answer for a run, and its last test accuracy in percent."""
    facts = facts_of(run, phase)
    result = analyse_warmup(grid_of(run, facts, COLUMNS), steps_of(run, facts, ["step", "loss"]), facts, thresholds)
    accuracy = epochs_of(run, ["test_acc1"])["test_acc1"].dropna()
    return result, float(accuracy.iloc[-1]) if len(accuracy) else None
