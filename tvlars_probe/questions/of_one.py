"""What one run is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.displays.displayed import Displayed, Shown, ShownTable
from tvlars_probe.questions.asked import Asked
from tvlars_probe.questions.listing import HEADINGS, row_of

if TYPE_CHECKING:
    from tvlars_probe.analyses.minimizer import Minimizer
    from tvlars_probe.analyses.warmup.analysis import Warmup


class AskedRun(Asked, Displayed):
    """The questions to one run."""

    def warmup(self, *, phase: str | None = None, **thresholds: Any) -> Warmup:
        """Was warm-up needed, for which layers, and for how long? As ``tvlars-probe warmup`` answers.

        Args:
            phase: phase of a run that has several; the first by default.
            **thresholds: fields of `tvlars_probe.analyses.warmup.thresholds.Thresholds`, such as ``hot``,
                ``explosion``, ``loss_rise`` and ``early_epochs``.

        Raises:
            UserError: a threshold is unknown or outside its range, or there is no such phase.
            TraceError: a column that is needed isn't in the trace.
        """
        from tvlars_probe.analyses.of_runs import warmup_of
        from tvlars_probe.analyses.warmup.thresholds import Thresholds

        return warmup_of(self._sources(phase)[0], Thresholds.of(**thresholds))[0]

    def minimizer(self, *, bn_mode: str | None = None, escaped: float = 0.5, phase: str | None = None) -> Minimizer:
        """Trapped in a sharp minimum, or escaped? As ``tvlars-probe minimizer`` answers.

        Args:
            bn_mode: BatchNorm mode of the measurements, "eval", "train" or "frozen-batch"; by default the most measured
                one.
            escaped: share of a sharp phase's top below which a run has escaped.
            phase: phase of a run that has several; the first by default.

        Raises:
            UserError: a setting is outside its range, or there is no such phase.
        """
        from tvlars_probe.analyses.minimizer import SharpnessRule
        from tvlars_probe.analyses.of_runs import minimizer_of

        return minimizer_of(self._sources(phase)[0], bn_mode=bn_mode, rule=SharpnessRule(escaped=escaped))

    def _shown(self) -> Shown:
        (trace,) = self._traces
        row = row_of(trace)
        table = ShownTable.of_rows([row], HEADINGS)
        return Shown(head=trace.name, answer=row["status"], lines=(str(trace.path),), tables=(table,))
