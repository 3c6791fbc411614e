"""Where a batch stands beside the noise scale, in words, and what may mislead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import counted, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "Is the batch within what the gradient noise supports?"

BELOW, AT, BEYOND = "below", "at", "beyond"
"""Where a batch stands: below the interval of B_simple, within it, or beyond it."""

WIDE = 10.0
"""Where the interval's upper end is more than so many times its lower one, a batch within it isn't told to be at it."""


def latest(curve: pd.DataFrame) -> int:
    """The place of the estimate that ends last. Of two it is the later one in the curve, where probes stand last.

    Of several probes in one step that is the one on training data with the most samples, and of equal ones the newest.
    """
    ends = curve["last_step"].to_numpy()
    return int(np.flatnonzero(ends == ends.max())[-1])


def side_of(batch: float, low: float, high: float) -> str:
    """Where a batch stands beside an interval of B_simple; `CANT_TELL` where that is unknown, open or wide."""
    if math.isnan(low) or math.isnan(high):
        return CANT_TELL
    if batch < low:
        return BELOW
    if batch > high:
        return BEYOND
    return AT if low > 0 and high <= WIDE * low else CANT_TELL


def interval_text(value: float, low: float, high: float, *, level: float = 0.95) -> str:
    """A figure with its interval, as "61 (95 %: 52 to 73)", "at least 1,200 (95 %)" or "unknown"."""
    how_sure = percent(level)
    if math.isnan(low) or math.isnan(high):
        return "unknown" if math.isnan(value) else f"{number(value)} (its error is unknown)"
    if high == math.inf and not math.isnan(value):
        return f"{number(value)} ({how_sure}: {number(low)} or more)"
    if high == math.inf:
        return f"at least {number(low)} ({how_sure})" if low > 0 else "unknown"
    if math.isnan(value):
        return f"at most {number(high)} ({how_sure})"
    return f"{number(value)} ({how_sure}: {number(low)} to {number(high)})"


def number(value: float) -> str:
    """Three digits, and thousands as whole numbers: "0.62", "61.3", "1,234"."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def noise_verdict(curve: pd.DataFrame, batch: float | None, unit: str) -> Verdict:
    """Place the batch beside the estimate of B_simple that ends last, by `side_of`.

    Args:
        curve: `tvlars_probe.analyses.batches.noise_scale.NoiseScale.curve`.
        batch: the run's own batch; None where it isn't known.
        unit: what both are counted in.
    """
    if not len(curve):
        reason = ("no gradient noise is on record: train --noise or --noise-every, record(noise=True), or tvlars-probe "
                  "batch-size RUN --checkpoint last.")  # fmt: skip
        return Verdict(QUESTION, CANT_TELL, reason)
    row = curve.iloc[latest(curve)].to_dict()
    value, low, high = float(row["simple_batch"]), float(row["low"]), float(row["high"])
    training = curve[curve["source"] == "training"]
    own = training["batch"].to_numpy(float)
    figures = (
        Figure("simple_batch", value, unit, "B_simple = tr Σ/|G|²"),
        Figure("low", low, unit, "lower end of its 95 % interval"),
        Figure("high", high if math.isfinite(high) else None, unit, "upper end of it; unknown where it is open"),
        Figure("batch", batch, unit, "the run's own batch"),
        Figure("step", float(row["step"]), "step", "middle of the steps averaged over"),
        Figure("below_share", _share(own < training["low"]), "share", "windows in which the batch is below"),
        Figure("beyond_share", _share(own > training["high"]), "share", "windows in which the batch is beyond"),
    )
    where = (
        f"step {row['step']:,} (mean over {counted(int(row['rows']), 'recorded step')} from {row['first_step']:,} to "
        f"{row['last_step']:,})"
        if row["source"] == "training"
        else f"step {row['step']:,} (a probe on {row['split'] or 'given'} data, BatchNorm mode {row['bn_mode']}"
        f"{', with heavy tails' if is_heavy(row) else ''})"
    )
    scale = f"B_simple is {interval_text(value, low, high)} at {where}"
    if batch is None:
        return Verdict(QUESTION, CANT_TELL, f"{scale}; the run's own batch isn't known.", figures)
    answer = side_of(batch, low, high)
    said = f"a batch of {batch:,.0f} {unit}"
    if answer == CANT_TELL:
        why = "the interval is unknown:" if math.isnan(low) else "the interval is too wide:"
        return Verdict(QUESTION, CANT_TELL, f"{why} {said} can't be placed: {scale}.", figures)
    reason = f"{said} is {answer} what the gradient noise supports: {scale}."
    return Verdict(QUESTION, answer, reason, figures)


def _share(flags: Any) -> float | None:
    return float(np.mean(flags)) if len(flags) else None


def disagreement_of(curve: pd.DataFrame) -> str | None:
    """A sentence where a probe near the middle of a window of training has an interval apart from that one's."""
    training, probes = (curve[curve["source"] == name] for name in ("training", "probe"))
    if not len(training):
        return None
    for row in probes.to_dict("records"):
        near = training.iloc[int((training["step"] - row["step"]).abs().to_numpy().argmin())]
        # At a window's edge they may differ since the scale itself changes within it.
        is_within = 4 * abs(near["step"] - row["step"]) <= near["last_step"] - near["first_step"]
        if is_within and (row["low"] > near["high"] or row["high"] < near["low"]):
            return (
                f"at step {row['step']:,} the probe's interval of B_simple lies apart from that of training: its "
                f"sample, its augmentation or its mode of BatchNorm ({row['bn_mode']}) makes another gradient, or |G|² "
                f"changes within the window, where the largest count most"
            )
    return None


def doubts_of_rows(not_finite: int, of_another_unit: int, unit: str) -> list[str]:
    """Sentences on the rows that were left out."""
    doubts = []
    if not_finite:
        doubts.append(f"left out, as without finite figures: {counted(not_finite, 'row')}")
    if of_another_unit:
        doubts.append(f"left out, as not counted in {unit}: {counted(of_another_unit, 'row')}")
    return doubts


def is_heavy(row: Mapping[Any, Any]) -> bool:
    """Whether a row is of a probe whose gradients have heavy tails; earlier versions didn't record it."""
    told = row["heavy_tails"]
    return not pd.isna(told) and bool(told)


def doubts_of_tails(probes: pd.DataFrame) -> list[str]:
    """A sentence on the last probe that has too few gradients for their tails."""
    heavy = [row for row in probes.to_dict("records") if is_heavy(row)]
    if not heavy:
        return []
    row = heavy[-1]
    others = f" (so it is of {counted(len(heavy) - 1, 'other probe')})" if len(heavy) > 1 else ""
    return [
        f"at step {row['step']:,} a few of the probe's {row['pieces']:,.0f} gradients make much of tr Σ (skewness "
        f"{row['noise_skewness']:.2g}){others}: the interval of B_simple holds the truth less often than in 95 %; "
        f"measure with more --samples"
    ]


def doubts_of_optimizer(facts: RunFacts) -> list[str]:
    """What of B_simple's assumptions the optimizer breaks, by its description."""
    if not facts.groups:
        return ["what the optimizer does isn't on record: B_simple assumes SGD"]
    from tvlars_probe.optimizers.group_entries import from_entry

    description = from_entry(facts.main_group)
    kind, name = description.preconditioner.kind, description.optimizer
    what = {
        "sign": "takes signs",
        "matrix": "makes matrices orthogonal",
        "none": "scales each tensor by a norm" if description.scaling.kind == "trust-ratio" else "",
    }.get(kind, "divides by a root of squared gradients")
    if not description.is_known:
        return [f"nothing is known of what {name} does: B_simple assumes SGD"]
    if not what:
        return []
    return [f"{name} {what}: B_simple assumes SGD, and the norm that counts here is another (arXiv 2602.03001)"]
