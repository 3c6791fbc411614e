"""Is the best of several settings apart from each of the others?

Each difference is judged by Welch's t (1947), which takes the scatter of each setting as it is; over several settings
by the studentised range with Welch's degrees of freedom (Games & Howell 1976). Settings of one seed aren't paired: over
a seed that they share the accuracies of different settings are all but uncorrelated (docs/verdicts.md), so that pairs
would gain nothing and lose half of the degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.05
"""A leader is apart from another setting if so large a difference has at most this probability with equal means."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SettingMeans:
    """Means of k settings over seeds, the leader's first.

    Attributes:
        means: the mean of each, at the rate that was chosen, (k,), with its sign such that higher is better.
        held_out: the same without the optimism of the choice, (k,).
        errors: standard error of each mean, (k,); NaN with one seed.
        seeds: number of seeds of each, (k,).
    """

    means: Floats
    held_out: Floats
    errors: Floats
    seeds: Floats

    def against_leader(self) -> pd.DataFrame:
        """What sets the leader apart from each setting: a row per setting, the leader's first and empty.

        A difference is taken twice, of the means as they are and of those without the optimism of the choice, and
        counts as the smaller one: the first is short of scatter where rates are alike, the second where they are not.

        ``gap`` is by how much the leader's mean is better, with the 95 % interval of that one difference from
        ``gap_low`` to ``gap_high`` (Welch), which holds both. ``p_pair`` is Welch's p-value of the smaller difference,
        two-sided; ``p`` that among k settings: the one by the studentised range, or the largest ``p_pair`` of all if
        that is smaller, for whatever the leader wins all its pairs by, it is the best by (an intersection-union test,
        Berger 1982). ``apart`` is whether p is below `LEVEL`; None where it is unknown.
        """
        both = np.stack([self.means, self.held_out])
        differences = both[:, :1] - both
        smaller, larger = differences.min(axis=0), differences.max(axis=0)
        error = np.hypot(self.errors[0], self.errors)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = self.errors**4 / (self.seeds - 1)
            freedom = error**4 / (parts[0] + parts)
            t = np.where(error > 0, smaller / error, np.nan)
            margin = np.where(error > 0, stats.t.ppf(1 - LEVEL / 2, freedom) * error, np.nan)
        table = pd.DataFrame(
            {"gap": differences[0], "gap_low": smaller - margin, "gap_high": larger + margin}
            | self._chances(t, freedom, smaller, error)
        )
        # By itself the leader isn't compared.
        table.loc[0, ["gap_low", "gap_high", "p_pair", "p"]] = np.nan
        table["p"] = np.fmin(table["p"], table["p_pair"][1:].max(skipna=False))
        judged = table["p"].notna()
        table["apart"] = (table["p"] < LEVEL).astype(object).where(judged, None)
        return table

    def _chances(self, t: Floats, freedom: Floats, smaller: Floats, error: Floats) -> dict[str, Floats]:
        """``p_pair``, and ``p`` by the studentised range."""
        k = max(2, int(np.isfinite(self.means).sum()))
        wins = np.maximum(t, 0.0)  # a difference that changes its sign with the choice is none
        pair = 2 * stats.t.sf(wins, freedom)
        among = pair if k == 2 else stats.studentized_range.sf(wins * math.sqrt(2), k, freedom)
        # Without any scatter on either side there is no t, but there are orders: all of one side above the other.
        total, own = self.seeds[0] + self.seeds, self.seeds
        orders = np.array([math.comb(int(n), int(m)) for n, m in zip(total, own, strict=True)])
        exact = np.where(smaller > 0, np.minimum(2 / orders, 1.0), 1.0)
        still = error == 0
        return {
            "p_pair": np.where(still, exact, pair),
            "p": np.where(still, np.minimum(exact * (k * (k - 1) / 2), 1.0), among),
        }
