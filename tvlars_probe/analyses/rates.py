"""The effective rate of every tensor and step, split into terms that add up.

The effective rate is lr·trust_ratio: the learning rate that the tensor really had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.rate_courses import rate_courses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid

    Floats = NDArray[np.float64]

TERMS = ("peak_lr", "schedule", "eta", "phi", "norm_ratio", "clip")
"""Names of the terms that make up the log effective rate."""

COLUMNS = ("step", "parameter", "weight_norm", "direction_norm", "trust_ratio", "phi", "lr")
"""Columns of the table ``layers`` that `decompose` needs."""

SMALLEST_RATE = 1e-30
"""Rates below this are counted, not split: lars-warm starts at 0, and TVLARS' φ dies out."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """log(lr·trust_ratio) of every recorded step (T) and tensor (P), and the terms of which it is the sum.

    All logarithms are natural. The peak is that of the tensor's own parameter group, and ‖w‖ and ‖d‖ are clamped as the
    optimizer clamps them::

        log rate = log peak_lr + log(lr/peak_lr) + log eta + log φ + log(‖w‖/‖d‖) + what clipping changed
                   peak_lr       schedule          eta       phi     norm_ratio     clip

    Each term is computed from its own definition, so that ``remainder`` tests the sum. The last four are 0 for tensors
    that are left out of adaptation, and at zero norm.

    Attributes:
        facts: what the run's manifest tells.
        steps: the recorded steps, (T,).
        parameters: names of the tensors, (P,).
        adapted: whether each tensor's rate is scaled by a trust ratio, (P,); true where the manifest doesn't tell.
        log_rate: log of the recorded effective rate, (T, P); NaN where that is below `SMALLEST_RATE` or not known.
        terms: a matrix (T, P) for each name in `TERMS`.
        peaks: the highest learning rate of each tensor's group, to which the first two terms refer, (P,); 0 or NaN
            where it never has a rate.
        vanished: number of rows with an effective rate below `SMALLEST_RATE`.
        unknown: number of rows whose trust ratio isn't known.
    """

    facts: RunFacts
    steps: NDArray[np.int64]
    parameters: tuple[str, ...]
    adapted: NDArray[np.bool_]
    log_rate: Floats
    terms: Mapping[str, Floats]
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
        """The trust ratio without φ, (T, P): what the tensor's own norms made of its rate. 1 where none is applied."""
        return np.exp(self.terms["eta"] + self.terms["norm_ratio"] + self.terms["clip"])


def decompose(grid: LayerGrid, facts: RunFacts, peaks: Floats | None = None) -> Decomposition:
    """Split the log effective rate of every step and tensor into `TERMS`.

    Args:
        grid: the columns `COLUMNS` of ``layers``.
        facts: what the run's manifest tells.
        peaks: `RateCourses.peaks` of the grid's tensors, needed where it holds only some of the phase's.
    """
    lr, trust = grid["lr"].astype(np.float64), grid["trust_ratio"].astype(np.float64)
    adapted = np.array([flag is not False for flag in facts.flag("adapted", grid.parameters)], bool)
    rate = lr * trust
    there = np.isfinite(lr)
    vanished = there & (np.abs(rate) < SMALLEST_RATE)
    peaks = rate_courses(grid, facts).peaks if peaks is None else peaks
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
        peaks=peaks,
        vanished=int(vanished.sum()),
        unknown=int((there & np.isnan(trust)).sum()),
    )


def _ratio_terms(grid: LayerGrid, facts: RunFacts, adapted: NDArray[np.bool_], lr: Floats) -> dict[str, Floats]:
    """The terms that make up the trust ratio, each (T, P); 0 where no ratio is applied."""
    scalings = [group.scaling for group in facts.descriptions_of(grid.parameters)]
    weight_norm, divisor = grid["weight_norm"].astype(np.float64), grid["direction_norm"].astype(np.float64)
    # At zero norm the optimizers take the ratio 1. A norm that isn't on record (NaN) compares as False, too.
    applies = adapted & (weight_norm > 0) & (divisor > 0)
    weight_cap, divisor_cap = (
        np.array([np.inf if cap is None else cap for cap in caps])
        for caps in ([s.weight_cap for s in scalings], [s.divisor_cap for s in scalings])
    )
    ratio = np.minimum(weight_norm, weight_cap) / np.minimum(divisor, divisor_cap)
    eta = np.array([s.eta for s in scalings])
    # φ is null for optimizers that have none.
    phi = np.nan_to_num(grid["phi"].astype(np.float64), nan=1.0)
    scaled = eta * phi * ratio
    clips = np.array([s.clip != "none" for s in scalings], bool)
    per_rate = np.array([s.clip == "rate" for s in scalings], bool)
    # LARC's ratio is min(q/lr, 1), its effective rate min(q, lr): below the limit its clip term is −log lr, not 0. At
    # rate zero the ratio is 1, as in `trust_ratios`.
    clipped = np.where(per_rate, np.minimum(np.where(lr > 0, scaled / lr, 1.0), 1.0), np.minimum(scaled, 1.0))
    raw = {
        "eta": np.broadcast_to(np.log(eta), ratio.shape),
        "phi": np.log(phi),
        "norm_ratio": np.log(ratio),
        "clip": np.where(clips, np.log(clipped / scaled), 0.0),
    }
    return {name: np.where(applies, term, 0.0) for name, term in raw.items()}
