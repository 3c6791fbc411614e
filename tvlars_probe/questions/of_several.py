"""What several runs are asked together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.admission.names import printable
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.displays.displayed import MOST_ROWS, Displayed, Shown, ShownTable
from tvlars_probe.questions.asked import Asked
from tvlars_probe.questions.listing import HEADINGS, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.comparison import Comparison
    from tvlars_probe.analyses.correlation import SharpnessCorrelation
    from tvlars_probe.analyses.warmup.pairs import WarmupPairs


class AskedRuns(Asked, Displayed):
    """The questions to several runs."""

    def warmup(
        self, *, pair_by: Literal["peak_lr", "lr"] = "peak_lr", phase: str | None = None, **thresholds: Any
    ) -> WarmupPairs:
        """Was warm-up needed, by pairs of runs with it and without? As ``tvlars-probe warmup RUN RUN ...`` answers.

        Args:
            pair_by: rate by which runs are paired, "peak_lr" or "lr".
            phase: phase of runs that have several; the first by default.
            **thresholds: fields of `tvlars_probe.analyses.warmup.thresholds.Thresholds`.

        Raises:
            UserError: a setting is unknown or outside its range, or there is no such phase.
            TraceError: a column that is needed isn't in a trace.
        """
        from tvlars_probe.analyses.of_runs import warmup_pairs_of
        from tvlars_probe.analyses.warmup.thresholds import Thresholds

        return warmup_pairs_of(self._sources(phase), Thresholds.of(**thresholds), by=pair_by)[0]

    def minimizer(
        self, *, bn_mode: str | None = None, escaped: float = 0.5, phase: str | None = None, seed: int = 0
    ) -> SharpnessCorrelation:
        """Do sharper minima generalise worse here? As ``tvlars-probe minimizer RUN RUN ...`` answers.

        Args:
            bn_mode: BatchNorm mode of the measurements; by default the most measured one.
            escaped: share of a sharp phase's top below which a run has escaped.
            phase: phase of runs that have several; the first by default.
            seed: of the bootstrap.

        Raises:
            UserError: a setting is outside its range, or there is no such phase.
        """
        from tvlars_probe.analyses.minimizer import SharpnessRule
        from tvlars_probe.analyses.of_runs import correlation_of

        rule = SharpnessRule(escaped=escaped)
        return correlation_of(self._sources(phase), bn_mode=bn_mode, rule=rule, seed=seed)[0]

    def compare(
        self,
        *,
        metric: str = "test_acc1",
        rows: Sequence[str] = ("optimizer", "schedule", "lmbda"),
        columns: Sequence[str] = ("batch_size",),
        target: float | None = None,
    ) -> Comparison:
        """How do optimizers, batch sizes and schedules compare? As ``tvlars-probe compare`` answers.

        Args:
            metric: column of the table ``epochs`` that is compared, at the last epoch.
            rows: fields by which settings are told apart, a row each.
            columns: fields by which they are also told apart, a column each.
            target: test accuracy in percent to which epochs are counted.

        Raises:
            UserError: there is no such metric or field.
        """
        from tvlars_probe.analyses.of_runs import comparison_of

        fields = {"rows": tuple(rows), "columns": tuple(columns)}
        return comparison_of(self._sources(), metric=metric, target=target, **fields)

    def __repr__(self) -> str:
        names = [trace.name for trace in self._traces]
        return f"<{type(self).__name__} {printable(some_of(names) if names else '(none)')}>"

    def _shown(self) -> Shown:
        traces = self._traces
        rows = [row_of(trace) for trace in traces[:MOST_ROWS]]
        return Shown(
            head=counted(len(traces), "run"),
            tables=(ShownTable.of_rows(rows, HEADINGS, count=len(traces)),),
        )
