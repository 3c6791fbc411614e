"""The effective rate of every layer and step, split into terms that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid

    Floats = NDArray[np.float64]

TERMS = ("peak_lr", "schedule", "eta", "phi", "norm_ratio", "clip")
"""The terms of the log effective rate, in the order in which they are multiplied."""

COLUMNS = ("step", "parameter", "weight_norm", "direction_norm", "trust_ratio", "phi", "lr")
"""What of the table ``layers`` `decompose` needs."""

SMALLEST_RATE = 1e-30
"""Rates below this are counted, not split: lars-warm starts at 0, and TVLARS' φ dies out."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """log(lr·trust_ratio) of every recorded step (T) and tensor (P), and the terms that it is the sum of.

    Natural logarithms. log rate = log peak_lr + log(lr/peak_lr) [schedule] + log eta + log φ + log(‖w‖/‖d‖ as
    clamped) [norm_ratio] + what clipping took [clip], each term from its own definition, so that ``remainder`` tests
    the sum. Tensors left out of adaptation, and those at zero norm, have the last four at 0.

    Attributes:
        facts: of the run.
        steps: (T,).
        parameters: (P,).
        adapted: whether each tensor's rate is scaled by a trust ratio, (P,).
        log_rate: as recorded, (T, P); NaN where there is no row or the rate is below `SMALLEST_RATE`.
        terms: per name in `TERMS` a matrix (T, P).
        peak_lr: the highest rate of the run's schedule.
        peaks: that of each tensor's group, which the schedule's term refers to, (P,).
        vanished: rows with a rate below `SMALLEST_RATE`.
        unknown: rows whose trust ratio isn't known.
    """

    facts: RunFacts
    steps: NDArray[np.int64]
    parameters: tuple[str, ...]
    adapted: NDArray[np.bool_]
    log_rate: Floats
    terms: Mapping[str, Floats]
    peak_lr: float
    peaks: Floats
    vanished: int
    unknown: int

    @property
    def remainder(self) -> float:
        """Largest difference between the sum of the terms and the log of the recorded rate; NaN without rows."""
        difference = np.abs(sum(self.terms.values()) - self.log_rate)
        return float(np.nanmax(difference)) if np.isfinite(difference).any() else np.nan

    @property
    def own_ratio(self) -> Floats:
        """The trust ratio without φ, (T, P): what the tensor's own norms made of its rate."""
        return np.exp(self.terms["eta"] + self.terms["norm_ratio"] + self.terms["clip"])


def decompose(grid: LayerGrid, facts: RunFacts, highest: float | None = None) -> Decomposition:
    """Split the log effective rate of every step and tensor into `TERMS`.

    Args:
        grid: the columns `COLUMNS` of ``layers``.
        facts: of the run; without ``peak_lr`` the largest recorded rate is taken.
        highest: the run's largest recorded rate, where ``grid`` holds some of its tensors only.
    """
    lr, trust = grid["lr"].astype(np.float64), grid["trust_ratio"].astype(np.float64)
    adapted = np.array([flag is not False for flag in facts.flag("adapted", grid.parameters)], bool)
    rate = lr * trust
    there = np.isfinite(lr)
    vanished = there & (np.abs(rate) < SMALLEST_RATE)
    highest = highest_rate(grid) if highest is None else highest
    peak = facts.peak_lr or highest
    peaks = _peaks(lr, peak, highest)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rate = np.where(vanished, np.nan, np.log(rate))
        terms = {
            "peak_lr": np.broadcast_to(np.log(peaks), lr.shape),
            "schedule": np.log(lr / peaks),
            **_ratio_terms(grid, facts, adapted, lr),
        }
        terms = {name: np.where(np.isnan(log_rate), np.nan, terms[name]) for name in TERMS}
    return Decomposition(
        facts=facts,
        steps=grid.steps,
        parameters=grid.parameters,
        adapted=adapted,
        log_rate=log_rate,
        terms=terms,
        peak_lr=peak,
        peaks=peaks,
        vanished=int(vanished.sum()),
        unknown=int((there & np.isnan(trust)).sum()),
    )


def _peaks(lr: Floats, peak: float, highest: float) -> Floats:
    """Each tensor's own peak: groups may have other rates, all under one schedule."""
    if not lr.size:
        return np.full(lr.shape[1], peak)
    own = np.fmax.reduce(lr, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(own > 0, peak * (own / highest), peak)


def highest_rate(grid: LayerGrid) -> float:
    """The largest recorded learning rate; NaN without rows."""
    lr = grid["lr"]
    return float(np.fmax.reduce(lr, axis=None)) if lr.size else np.nan


def _ratio_terms(grid: LayerGrid, facts: RunFacts, adapted: NDArray[np.bool_], lr: Floats) -> dict[str, Floats]:
    """log eta, log φ, log of the norms' ratio and of the clip; 0 where no ratio is applied."""
    scalings = [group.scaling for group in facts.descriptions_of(grid.parameters)]
    weight_norm, divisor = grid["weight_norm"].astype(np.float64), grid["direction_norm"].astype(np.float64)
    applies = adapted & (weight_norm > 0) & (divisor > 0)
    weight_cap, divisor_cap = (
        np.array([np.inf if cap is None else cap for cap in caps])
        for caps in ([s.weight_cap for s in scalings], [s.divisor_cap for s in scalings])
    )
    ratio = np.minimum(weight_norm, weight_cap) / np.minimum(divisor, divisor_cap)
    eta = np.array([s.eta for s in scalings])
    phi = np.nan_to_num(grid["phi"].astype(np.float64), nan=1.0)
    scaled = eta * phi * ratio
    clips = np.array([s.clip != "none" for s in scalings], bool)
    per_rate = np.array([s.clip == "rate" for s in scalings], bool)
    clipped = np.where(per_rate, np.minimum(np.where(lr > 0, scaled / lr, 1.0), 1.0), np.minimum(scaled, 1.0))
    raw = {
        "eta": np.broadcast_to(np.log(eta), ratio.shape),
        "phi": np.log(phi),
        "norm_ratio": np.log(ratio),
        "clip": np.where(clips, np.log(clipped / scaled), 0.0),
    }
    return {name: np.where(applies, term, 0.0) for name, term in raw.items()}
