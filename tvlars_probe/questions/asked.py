"""What one run and several are asked in the same way. What a call needs is imported by the call."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.batches.batch_size import BatchSizeAnswers
    from tvlars_probe.analyses.replay import Replay
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.charts.kinds import Chart
    from tvlars_probe.traces.reader import Trace


class Asked(ABC):
    """A run or several, as far as both are asked alike. Every method does what the command of its name does."""

    @property
    @abstractmethod
    def _traces(self) -> Sequence[Trace]:
        """The runs that are asked."""

    def _sources(self, phase: str | None = None) -> list[Source]:
        from tvlars_probe.analyses.source import Source

        if not self._traces:
            raise UserError("there is no run to ask: open_runs() was given none")
        return [Source(trace, phase) for trace in self._traces]

    def critical_batch(
        self, *, target: float | None = None, window: int | None = None, phase: str | None = None, seed: int = 0
    ) -> BatchSizeAnswers:
        """How large may the batch be? By what is on record, as ``tvlars-probe batch-size`` answers.

        Args:
            target: loss to reach, for the time to a target; by default chosen from the runs.
            window: recorded steps over which signal and noise are averaged; by default a tenth of them, 30 to 1000.
            phase: phase of a run that has several; the first by default.
            seed: of everything random.

        Raises:
            TraceError: the runs can't tell.
            UserError: a setting is outside its range, or there is no such phase.
        """
        from tvlars_probe.analyses.batches.batch_size import critical_batch_of

        return critical_batch_of(self._sources(phase), target=target, window=window, seed=seed)

    def replay(
        self,
        *,
        optimizer: str | None = None,
        lr: float | None = None,
        schedule: str | None = None,
        warmup_epochs: float | None = None,
        eta: float | None = None,
        weight_decay: float | None = None,
        denominator: str | None = None,
        exclusion: str | None = None,
        trust_clip: bool | None = None,
        adam: bool | None = None,
        lmbda: float | None = None,
        alpha: float | None = None,
        delay: float | None = None,
        gamma_min: float | None = None,
        phase: str | None = None,
    ) -> Replay:
        """What trust ratio would another variant have given, at each recorded step? As ``tvlars-probe replay`` answers.

        A setting that is None is that of each tensor's parameter group.

        Args:
            optimizer: lars, lamb, nlamb or tvlars.
            lr: learning rate, before the schedule; groups with a rate of their own keep it.
            schedule: none, cosine or lars-warm.
            warmup_epochs: length of lars-warm's warm-up.
            eta: trust coefficient.
            weight_decay: λ.
            denominator: "decayed" ‖g + λw‖, "sum" ‖g‖ + λ‖w‖, or "grad" ‖g‖.
            exclusion: what is not adapted, "ndim" or "undecayed".
            trust_clip: whether the ratio is clipped.
            adam: lamb or nlamb without its ratio.
            lmbda: TVLARS' λ, per update.
            alpha: TVLARS' α.
            delay: TVLARS' d_e, in updates.
            gamma_min: TVLARS' γ_min.
            phase: phase of a run that has several; the first by default.

        Raises:
            UserError: several runs are asked, or a setting is unknown, outside its range, or has no effect.
            TraceError: a column that is needed isn't in the trace.
        """
        settings = {name: value for name, value in locals().items() if name not in ("self", "phase")}
        from tvlars_probe.analyses.replay_of_run import replay_of, the_one

        given = {name: value for name, value in settings.items() if value is not None}
        return replay_of(the_one(self._sources(phase)), **given)

    def chart(self, kind: str, *, phase: str | None = None) -> Chart:
        """An altair chart, as ``tvlars-probe chart`` draws it. Runs that it leaves out are named in a warning.

        Args:
            kind: such as "trust-ratio"; ``tvlars-probe chart --list`` lists the kinds, `chart_kinds` those that can
                be drawn of these runs.
            phase: phase of a run that has several; the first by default.

        Raises:
            UserError: there is no such kind, or it shows one run and several are asked.
            TraceError: no run has the data.
        """
        from tvlars_probe.charts.export import with_look
        from tvlars_probe.charts.kinds import draw, remarks

        sources = self._sources(phase)
        chart = with_look(draw(kind, sources))
        for remark in remarks(kind, sources):
            warnings.warn(remark, stacklevel=2)
        return chart

    def chart_kinds(self) -> dict[str, str]:
        """The kinds of chart that can be drawn of these runs: what each shows, by name."""
        from tvlars_probe.charts.kinds import KINDS, why_not

        sources = self._sources()
        able = {name: kind.about for name, kind in KINDS.items() if kind.several or len(sources) == 1}
        return {name: about for name, about in able.items() if why_not(name, sources) is None}

    def report(self, out: str | os.PathLike[str]) -> Path:
        """Write verdicts, charts and tables into one HTML page, as ``tvlars-probe report`` does.

        Args:
            out: the file, with the suffix .html. One that is there is replaced.

        Returns:
            the file's path.

        Raises:
            UserError: the file can't be written there.
        """
        from tvlars_probe.report.writing import write_report

        path = Path(os.path.expanduser(out))  # noqa: PTH111  (the method raises where there is no such user)
        write_report(self._sources(), path)
        return path
