"""The analyses, applied to recorded runs. Each reads only the columns that it needs, and keeps no matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import draws, mini_batch
from tvlars_probe.analyses.batches.noise_of_tensors import windows_of
from tvlars_probe.analyses.batches.noise_scale import COLUMNS as NOISE_COLUMNS
from tvlars_probe.analyses.batches.noise_scale import LAYER_COLUMNS, NoiseScale, analyse_noise
from tvlars_probe.analyses.comparison import Comparison, compare, epoch_columns, run_row
from tvlars_probe.analyses.correlation import EPOCH_COLUMNS, SharpnessCorrelation, correlate
from tvlars_probe.analyses.landscape import COLUMNS as LANDSCAPE_COLUMNS
from tvlars_probe.analyses.landscape import Landscape, analyse_landscape
from tvlars_probe.analyses.minimizer import COLUMNS as CURVATURE_COLUMNS
from tvlars_probe.analyses.minimizer import SPECTRUM_COLUMNS, Minimizer, SharpnessRule, analyse_minimizer
from tvlars_probe.analyses.warmup.analysis import Warmup, analyse_warmup
from tvlars_probe.analyses.warmup.features import CURVATURE_COLUMNS as CRITICAL_COLUMNS
from tvlars_probe.analyses.warmup.marks import COLUMNS as WARMUP_COLUMNS
from tvlars_probe.analyses.warmup.marks import STEP_COLUMNS
from tvlars_probe.analyses.warmup.pairs import WarmupPairs, pair_warmups
from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tvlars_probe.analyses.source import Source
    from tvlars_probe.analyses.warmup.thresholds import Thresholds


def warmup_of(source: Source, thresholds: Thresholds | None = None) -> tuple[Warmup, float | None]:
    """Was warm-up needed? Returns the analysis, and the run's last test accuracy in percent."""
    grid, steps = source.layers(WARMUP_COLUMNS), source.steps(STEP_COLUMNS)
    accuracy, curvature = last_accuracy(source.epochs(["test_acc1"])), source.curvature(CRITICAL_COLUMNS)
    return analyse_warmup(grid, steps, source.facts, thresholds, accuracy=accuracy, curvature=curvature), accuracy


def warmup_pairs_of(
    sources: Sequence[Source], thresholds: Thresholds | None = None, *, by: str = "peak_lr"
) -> tuple[WarmupPairs, list[Warmup]]:
    """Was warm-up needed, by pairs of runs with it and without?

    Args:
        sources: the runs.
        thresholds: what counts as hot, overwritten or exploded.
        by: the rate by which runs are paired, "peak_lr" or "lr".

    Raises:
        UserError: there is no such rate.
    """
    if by not in (rates := ("peak_lr", "lr")):
        raise unknown("rate to pair by", by, rates)
    results = [warmup_of(source, thresholds) for source in sources]
    return pair_warmups(results, by=by), [result for result, _ in results]


def last_accuracy(epochs: pd.DataFrame) -> float | None:
    """The last test accuracy on record, in percent."""
    accuracy = epochs["test_acc1"].dropna()
    return float(accuracy.iloc[-1]) if len(accuracy) else None


def minimizer_of(source: Source, *, bn_mode: str | None = None, rule: SharpnessRule | None = None) -> Minimizer:
    """Trapped in a sharp minimum, or escaped?"""
    curvature = source.curvature((*CURVATURE_COLUMNS, *draws.COLUMNS, *mini_batch.COLUMNS))
    spectrum = source.spectrum((*SPECTRUM_COLUMNS, *draws.SPECTRUM_COLUMNS))
    # The rates are read only where something is compared with them.
    rates = source.steps(mini_batch.STEP_COLUMNS) if curvature["measure"].isin(mini_batch.MEASURES).any() else None
    accuracy = last_accuracy(source.epochs(["test_acc1"])) if len(curvature) else None
    return analyse_minimizer(
        curvature, spectrum, source.facts, rates=rates, accuracy=accuracy, bn_mode=bn_mode, rule=rule
    )


def comparison_of(
    sources: Sequence[Source], *, metric: str = "test_acc1", target: float | None = None, **table: Any
) -> Comparison:
    """Which setting is best? ``table`` holds the arguments ``rows`` and ``columns`` of `compare`."""
    needed = epoch_columns(metric)
    rows = [
        run_row(replace(s.facts, peak_lr=s.peak_lr), s.epochs(needed), metric=metric, target=target) for s in sources
    ]
    return compare(rows, metric=metric, target=target, **table)


def correlation_of(
    sources: Sequence[Source], *, bn_mode: str | None = None, rule: SharpnessRule | None = None, seed: int = 0
) -> tuple[SharpnessCorrelation, list[Minimizer]]:
    """Do sharper minima generalise worse here?"""
    results = [minimizer_of(source, bn_mode=bn_mode, rule=rule) for source in sources]
    epochs = [source.epochs(EPOCH_COLUMNS) for source in sources]
    return correlate([*zip(results, epochs, strict=True)], seed=seed), results


def landscape_of(source: Source, rows: pd.DataFrame | None = None) -> Landscape:
    """How wide is the minimum? Reads the last slice among ``rows``, by default among all on record."""
    return analyse_landscape(source.landscape(LANDSCAPE_COLUMNS) if rows is None else rows, source.facts)


def noise_scale_of(source: Source, *, window: int | None = None, tensors: bool = True) -> NoiseScale:
    """Is the batch within what the gradient noise supports? ``tensors``: whether the rows of tensors are read, too."""
    rows = source.noise(NOISE_COLUMNS)
    steps = np.unique(rows.loc[rows["source"].astype(str) == "training", "step"].to_numpy(np.int64))
    firsts = windows_of(steps, window)
    layers = source.noise_of_tensors(firsts) if tensors else pd.DataFrame(columns=list(LAYER_COLUMNS))
    return analyse_noise(rows, layers, source.facts, window=window)
