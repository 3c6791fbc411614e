"""How a run's loss or accuracy goes over samples, and where it reaches a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from tvlars_probe.analyses.source import Source

METRICS = ("train_eval_loss", "val_loss", "test_loss", "loss", "val_acc1", "test_acc1")
"""What a target can be of. ``loss`` is that of the training batches, averaged; the others are columns of ``epochs``."""

REACHED, MISSED, EARLY = "reached", "not reached", "before the first evaluation"

_BATCHES = 4
"""``loss`` is averaged over as many samples as so many of the largest batches have: alike for all runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetCurve:
    """A figure of one run over the samples that it was trained on.

    Attributes:
        samples: where it was evaluated, (T,), ascending, above 0.
        values: the figure there, (T,), so that lower is better: an accuracy is negative.
    """

    samples: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def best(self) -> float:
        """The lowest value; infinite where there is none."""
        return float(self.values.min()) if len(self.values) else math.inf

    @property
    def first(self) -> float:
        """The first value; infinite where there is none."""
        return float(self.values[0]) if len(self.values) else math.inf

    def reach(self, target: float) -> tuple[str, float]:
        """Whether and after how many samples a value at or below ``target`` is reached for the first time.

        Between two evaluations a loss is interpolated on logarithmic axes, where it is nearly straight, an accuracy
        over the logarithm of samples. Where the first evaluation is below the target already, what came before isn't
        known.
        """
        below = np.flatnonzero(self.values <= target)
        if not len(below):
            return MISSED, math.nan
        at = int(below[0])
        if at == 0:
            exact = self.values[0] == target
            return (REACHED, float(self.samples[0])) if exact else (EARLY, math.nan)
        before, after = float(self.values[at - 1]), float(self.values[at])
        log = np.log(self.samples[at - 1 : at + 1])
        ends = [math.log(v) for v in (before, after, target)] if after > 0 else [before, after, target]
        share = (ends[0] - ends[2]) / (ends[0] - ends[1]) if math.isfinite(ends[0]) else 1.0
        return REACHED, float(np.exp(log[0] + share * (log[1] - log[0])))


def chosen_metric(sources: Sequence[Source], metric: str | None) -> str:
    """The metric asked for, or the first loss of `METRICS` that every run has which didn't diverge.

    Raises:
        UserError: there is no such metric, or the runs have none in common.
    """
    if metric is not None:
        if metric not in METRICS:
            raise unknown("metric of a target", metric, METRICS)
        return metric
    # A run that diverged in its first epoch has no evaluation, and reaches no target.
    asked = [source for source in sources if source.facts.status != "diverged"]
    for name in METRICS:
        table = "steps" if name == "loss" else "epochs"
        if asked and not name.endswith("acc1") and all(not source.lacks(table, name) for source in asked):
            return name
    raise UserError(
        "the runs have no loss in common, on training data, held-out data or test data: record one with each "
        "(rec.log(loss=...), rec.log_epoch(epoch=..., test_loss=...))"
    )


def curves_of(sources: Sequence[Source], metric: str) -> list[TargetCurve]:
    """The metric of each run over samples."""
    if metric != "loss":
        return [_of_epochs(source, metric) for source in sources]
    width = _BATCHES * max(batch_size_of(source) for source in sources)
    return [_of_steps(source.steps(["step", "loss", "samples"]), width) for source in sources]


def batch_size_of(source: Source) -> int:
    """Samples of one update: as the manifest tells it, or the median of what the steps' samples grow by.

    Raises:
        UserError: neither is told.
    """
    if source.facts.batch_size:
        return int(source.facts.batch_size)
    seen = source.steps(["step", "samples"])["samples"].dropna().to_numpy(float)
    sizes = np.diff(seen, prepend=0.0)
    if not (sizes > 0).any():
        raise UserError(f"{source.facts.name} doesn't tell its batch size: record it by rec.log(loss=..., samples=...)")
    return round(float(np.median(sizes[sizes > 0])))


def _of_epochs(source: Source, metric: str) -> TargetCurve:
    rows = source.epochs(["step", "epoch", metric])
    # Accuracies rise; a loss that isn't a number has diverged.
    sign = -1.0 if metric.endswith("acc1") else 1.0
    values = sign * rows[metric].to_numpy(float)
    steps = source.steps(["step", "samples"]).dropna()
    made, seen = steps["step"].to_numpy(float) + 1, steps["samples"].to_numpy(float)
    # An epoch's row holds the updates before it ended; its last one is of the step before.
    samples = np.interp(rows["step"].to_numpy(float), made, seen) if len(made) else np.full(len(rows), np.nan)
    told = np.isfinite(values) & np.isfinite(samples) & (samples > 0)
    order = np.argsort(samples[told], kind="stable")
    return TargetCurve(samples=samples[told][order], values=values[told][order])


def _of_steps(steps: pd.DataFrame, width: int) -> TargetCurve:
    """The loss of training batches, averaged over stretches of ``width`` samples, each at the middle of its batches."""
    steps = steps.dropna()
    seen, loss = steps["samples"].to_numpy(float), steps["loss"].to_numpy(float)
    before = np.concatenate(([0.0], seen[:-1]))
    sizes = np.maximum(seen - before, 0)
    places = (before // width).astype(np.int64)
    weights = np.bincount(places, sizes)
    told = weights > 0
    samples = np.bincount(places, sizes * (before + sizes / 2))[told] / weights[told]
    return TargetCurve(samples=samples, values=np.bincount(places, sizes * loss)[told] / weights[told])
