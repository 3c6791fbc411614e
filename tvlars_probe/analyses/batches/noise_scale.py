"""How large may the batch be, by the gradient's noise?

Let G be the gradient of the mean loss over all data, and Σ the covariance of one sample's gradient. A step with a batch
of B samples makes the progress 1/(1 + B_simple/B) of a step with the whole data, where

    B_simple = tr Σ / |G|²

is the *simple noise scale* (McCandlish et al. 2018, arXiv 1812.06162, equation 2.9): below it a batch of twice the size
is worth nearly two steps, far beyond it hardly more than one. It assumes SGD, small steps, and a Hessian that is a
multiple of the identity.

The table ``noise`` holds unbiased estimates of |G|² and of tr Σ. Their ratio isn't unbiased, and its mean doesn't
exist: the estimate of |G|² may be zero or negative. Both are therefore averaged apart, over a window of recorded steps,
and then divided.

The interval is Fieller's. The errors of the two means and their covariance come from the scatter of block means about a
straight line through the window: the line takes out what changes steadily, and blocks hold what neighbouring steps have
in common. A row of a probe stands by itself, with the errors that it tells; their covariance isn't recorded, and counts
as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from tvlars_probe.analyses.answered import AnsweredOfRun
from tvlars_probe.analyses.batches.fieller import UNKNOWN, Ratio, fieller
from tvlars_probe.analyses.batches.noise_verdict import (
    disagreement_of,
    doubts_of_optimizer,
    doubts_of_rows,
    doubts_of_tails,
    is_heavy,
    latest,
    noise_verdict,
)
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.verdict import Verdict

    Floats = NDArray[np.float64]

COLUMNS = (
    "step", "created_at", "source", "unit", "samples", "pieces", "gradient_square", "gradient_square_error",
    "noise_trace", "noise_trace_error", "noise_skewness", "heavy_tails", "split", "bn_mode", "top_share",
    "top_share_error", "top_vectors",
)  # fmt: skip
"""Columns of the table ``noise`` that `analyse_noise` needs, of rows of the whole model."""

CURVE_COLUMNS = (
    "step", "first_step", "last_step", "rows", "source", "split", "bn_mode", "batch", "gradient_square", "noise_trace",
    "simple_batch", "low", "high", "is_open", "heavy_tails", "top_share", "top_share_error", "top_vectors",
)  # fmt: skip
"""Columns of `NoiseScale.curve`."""

LAYER_COLUMNS = (
    "step", "first_step", "last_step", "rows", "source", "parameter", "gradient_square", "noise_trace", "simple_batch",
    "low", "high", "is_open",
)  # fmt: skip
"""Columns of `NoiseScale.layers`."""

LEAST_WINDOW, MOST_WINDOW, SHARE = 30, 1000, 0.1
"""The window by default: this share of the recorded steps, but at least and at most so many of them."""

BLOCKS = 20
"""Blocks of a window, at most, whose scatter gives the errors of its means."""

STEPS_OF_A_BLOCK, BLOCKS_OF_FEW_STEPS = 4, 7
"""A block has so many steps at least, if that leaves so many blocks: shorter ones share their neighbours' noise.

Widening the errors by the measured correlation of blocks would do as well for noise that steps share, and far too much
where |G|² itself swings over dozens of steps: that isn't an error of its mean over the window.
"""

FEWEST_BLOCKS = 5
"""With fewer there is no interval: a line through them leaves too little scatter to judge by."""

MOST_POINTS = 400
"""Most windows of a curve."""

LAYER_WINDOWS = 60
"""Most windows of a tensor: they don't overlap."""

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, repr=False)
class NoiseScale(AnsweredOfRun):
    """What the gradient's noise says of a run's batch.

    Attributes:
        facts: what the run's manifest tells.
        unit: what batches and noise are counted in: samples or tokens.
        batch: the run's own batch in that unit, in the last steps on record; None where it isn't known.
        window: recorded steps that are averaged over; 0 where none was recorded in training.
        curve: a row per window of steps in training, which overlap, and per row of a probe: ``step`` is the window's
            middle, ``first_step`` and ``last_step`` its ends, both included. ``simple_batch`` is B_simple, NaN where
            it can't be told; ``low`` and ``high`` are its 95 % interval, whose upper end is infinite where ``is_open``.
            Where a probe's gradients have ``heavy_tails``, that interval holds the truth less often.
            ``top_share`` of the noise, with ``top_share_error``, lies along the Hessian's ``top_vectors`` first
            eigenvectors, if a probe has measured it.
        layers: the same of each tensor, its windows side by side.
        verdict: below, at, beyond, or can't tell, by the estimate that ends last.
        doubts: sentences on what may mislead.
    """

    facts: RunFacts
    unit: str
    batch: float | None
    window: int
    curve: pd.DataFrame
    layers: pd.DataFrame
    verdict: Verdict
    doubts: tuple[str, ...]

    @property
    def last(self) -> dict[str, Any] | None:
        """The row of `curve` that the verdict is of; None where there is none."""
        return None if not len(self.curve) else {str(k): v for k, v in self.curve.iloc[latest(self.curve)].items()}


def window_of(rows: int, wanted: int | None = None) -> int:
    """The number of recorded steps to average over, of ``rows`` that there are.

    Raises:
        UserError: the one that is wanted is below 2.
    """
    if wanted is not None and wanted < 2:
        raise UserError(f"--window {wanted} is too small (allowed: 2 or more recorded steps; {LEAST_WINDOW} or more "
                        f"give a useful interval)")  # fmt: skip
    chosen = wanted or int(min(max(SHARE * rows, LEAST_WINDOW), MOST_WINDOW))
    return min(chosen, rows)


def analyse_noise(
    rows: pd.DataFrame, layers: pd.DataFrame, facts: RunFacts, *, window: int | None = None
) -> NoiseScale:
    """Average signal and noise, divide them, and put the batch beside it.

    Args:
        rows: the columns `COLUMNS` of the table ``noise``, of the whole model alone.
        layers: a row per tensor and window, as `tvlars_probe.analyses.batches.noise_of_tensors` gives them.
        facts: what the run's manifest tells.
        window: recorded steps to average over; see `window_of` for the default.

    Raises:
        UserError: the window is too small.
    """
    finite = rows[np.isfinite(rows["gradient_square"].astype(float)) & np.isfinite(rows["noise_trace"].astype(float))]
    units = finite["unit"].astype(str).mode()
    unit = str(units.iloc[0]) if len(units) and units.iloc[0] in ("samples", "tokens") else "samples"
    # What counts another unit is another quantity.
    kept = finite[(finite["unit"].astype(str) == unit) | finite["unit"].isna()]
    training = kept[kept["source"].astype(str) == "training"].sort_values("step", kind="stable")
    probes = in_order(kept[kept["source"].astype(str) == "probe"])
    chosen = window_of(len(training), window)
    curve = pd.DataFrame([*_training_curve(training, chosen), *_probe_points(probes)], columns=list(CURVE_COLUMNS))
    batch = _batch(curve, facts, unit)
    doubts = [*doubts_of_rows(len(rows) - len(finite), len(finite) - len(kept), unit), *doubts_of_optimizer(facts)]
    doubts += doubts_of_tails(probes)
    if (disagreement := disagreement_of(curve)) is not None:
        doubts.append(disagreement)
    return NoiseScale(
        facts=facts,
        unit=unit,
        batch=batch,
        window=chosen,
        curve=curve,
        layers=layers,
        verdict=noise_verdict(curve, batch, unit),
        doubts=tuple(doubts),
    )


def averaged(gradient_square: Floats, noise_trace: Floats, *, level: float = LEVEL) -> tuple[float, float, Ratio]:
    """The means of |G|² and tr Σ over the steps of a window, and their ratio with its interval.

    With the means x̄ and ȳ of n steps in K blocks of L steps each, of which s_xx, s_yy and s_xy are the covariances of
    the block means about their straight line, with K − 2 in the denominator, the covariances of the means over all n
    steps are s·L/n. The quantile is that of Student's distribution with K − 2 degrees of freedom.

    Args:
        gradient_square: estimates of |G|² in the order of steps, (n,).
        noise_trace: those of tr Σ, (n,).
        level: level of the interval.
    """
    n = len(gradient_square)
    means = float(np.mean(gradient_square)), float(np.mean(noise_trace))
    length = block_length(n)
    count = n // length
    if count < FEWEST_BLOCKS:
        return *means, UNKNOWN
    both = np.stack([gradient_square, noise_trace])
    # Blocks may begin at any of the first steps: the mean over all of these doesn't jump as the window moves on.
    spread = np.mean([_spread(both[:, offset:], length) for offset in range(length)], axis=0) * length / n
    quantile = float(stats.t.ppf((1 + level) / 2, count - 2))
    return *means, ratio_of(*means, spread[0, 0], spread[1, 1], spread[0, 1], quantile)


def block_length(steps: int) -> int:
    """Steps of a block, in a window of so many."""
    return max(-(-steps // BLOCKS), min(STEPS_OF_A_BLOCK, steps // BLOCKS_OF_FEW_STEPS), 1)


def _spread(series: Floats, length: int) -> Floats:
    """The covariances of the means of blocks of this length about their straight line, (2, 2); ``series`` is (2, n)."""
    count = series.shape[1] // length
    blocks = series[:, : count * length].reshape(2, count, length).mean(axis=2)
    at = np.arange(count) - (count - 1) / 2
    apart = blocks - blocks.mean(axis=1, keepdims=True)
    apart = apart - (apart @ at)[:, None] / (at @ at) * at
    spread: Floats = apart @ apart.T / (count - 2)
    return spread


def ratio_of(x: float, y: float, xx: float, yy: float, xy: float, quantile: float) -> Ratio:
    """B_simple from estimates x of |G|² and y of tr Σ with these variances and this covariance."""
    return fieller(y, x, variances=(float(yy), float(xx)), covariance=float(xy), quantile=quantile)


def _training_curve(rows: pd.DataFrame, window: int) -> list[dict[str, object]]:
    """The moving averages, over whole windows only."""
    if not len(rows):
        return []
    step, samples = rows["step"].to_numpy(np.int64), rows["samples"].to_numpy(float)
    x, y = rows["gradient_square"].to_numpy(float), rows["noise_trace"].to_numpy(float)
    starts = np.unique(np.linspace(0, len(rows) - window, min(len(rows) - window + 1, MOST_POINTS)).astype(int))
    points = []
    for start in starts.tolist():
        these = slice(start, start + window)
        signal, noise, ratio = averaged(x[these], y[these])
        first, last = int(step[start]), int(step[start + window - 1])
        points.append(
            {
                "step": (first + last) // 2,
                "first_step": first,
                "last_step": last,
                "rows": window,
                "source": "training",
                # Of the step's own batch: the part of the data and the mode of BatchNorm are those of training.
                "split": None,
                "bn_mode": None,
                "batch": _median(samples[these]),
                "gradient_square": signal,
                "noise_trace": noise,
                **_told(ratio),
            }
        )
    return points


def in_order(probes: pd.DataFrame) -> pd.DataFrame:
    """Rows of probes by step, and of one step the one to believe last: of training data, more samples, the newest."""
    is_of_training = probes["split"].isna() | (probes["split"].astype(str) == "train")
    return probes.assign(is_of_training=is_of_training).sort_values(
        ["step", "is_of_training", "samples", "created_at"], kind="stable", na_position="first"
    )


def _probe_points(rows: pd.DataFrame) -> list[dict[str, object]]:
    normal = float(stats.norm.ppf((1 + LEVEL) / 2))
    points = []
    for row in rows.to_dict("records"):
        x, y = float(row["gradient_square"]), float(row["noise_trace"])
        errors = [_number(row[name]) for name in ("gradient_square_error", "noise_trace_error")]
        ratio = ratio_of(x, y, errors[0] ** 2, errors[1] ** 2, 0.0, normal)
        points.append(
            {
                "step": int(row["step"]),
                "first_step": int(row["step"]),
                "last_step": int(row["step"]),
                "rows": 1,
                "source": "probe",
                "split": row["split"],
                "bn_mode": row["bn_mode"],
                "batch": math.nan,  # the size of the fixed sample is no batch
                "gradient_square": x,
                "noise_trace": y,
                **_told(ratio),
                "heavy_tails": is_heavy(row),
                **{name: _number(row[name]) for name in ("top_share", "top_share_error", "top_vectors")},
            }
        )
    return points


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)


def _told(ratio: Ratio) -> dict[str, object]:
    return {"simple_batch": ratio.value, "low": ratio.low, "high": ratio.high, "is_open": ratio.is_open}


def _median(values: Floats) -> float:
    told = values[np.isfinite(values)]
    return float(np.median(told)) if len(told) else math.nan


def _batch(curve: pd.DataFrame, facts: RunFacts, unit: str) -> float | None:
    """The run's own batch: of the last steps whose pieces tell it, or the manifest's, which counts samples."""
    told = curve["batch"].dropna()
    if len(told):
        return float(told.iloc[-1])
    return float(facts.batch_size) if unit == "samples" and facts.batch_size is not None else None
