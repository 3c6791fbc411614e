"""Is the best of several settings apart from each of the others?

Each difference is judged by Welch's t (1947), which takes the scatter of each setting as it is; over several settings
by the studentised range with Welch's degrees of freedom (Games & Howell 1976). Settings of one seed aren't paired: over
a seed that they share the accuracies of different settings are all but uncorrelated (docs/evidence/verdicts.md), so
that pairs would gain nothing and lose half of the degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special, stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.05
"""A leader is apart from another setting if so large a difference has at most this probability with equal means."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The scatter of pairs of means over seeds, by Welch.

    Attributes:
        errors: the standard errors of one side and of the other, arrays that broadcast; NaN with one seed.
        seeds: the numbers of seeds of both, in the same way.
    """

    errors: tuple[Floats, Floats]
    seeds: tuple[Floats, Floats]

    @property
    def error(self) -> Floats:
        """Standard error of the difference."""
        return np.hypot(*self.errors)

    @property
    def freedom(self) -> Floats:
        """Degrees of freedom (Welch & Satterthwaite)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = (error**4 / (count - 1) for error, count in zip(self.errors, self.seeds, strict=True))
            freedom: Floats = self.error**4 / (one + other)
        return freedom

    def margin(self) -> Floats:
        """Half width of the 95 % interval of each difference; NaN without any scatter."""
        half: Floats = stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error
        return half

    def chance(self, differences: Floats) -> Floats:
        """The two-sided p-value of each difference; 1 where it isn't above zero.

        Without any scatter on either side there is no t, but there are orders: the share of all ways to deal the values
        out that put all of one side above the other, 2/C(n + m, n).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            by_t = 2 * stats.t.sf(np.maximum(differences, 0.0) / self.error, self.freedom)
        orders = np.where(
            differences > 0, np.minimum(2 / special.binom(self.seeds[0] + self.seeds[1], self.seeds[0]), 1.0), 1.0
        )
        chance: Floats = np.where(self.error == 0, orders, by_t)
        return chance


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
        pairs = Pairs(errors=(self.errors[0], self.errors), seeds=(self.seeds[0], self.seeds))
        margin = pairs.margin()
        chance = pairs.chance(smaller)
        table = pd.DataFrame(
            {
                "gap": differences[0],
                "gap_low": smaller - margin,
                "gap_high": larger + margin,
                "p_pair": chance,
                "p": np.fmin(self._chance_among_all(pairs, smaller, chance), chance[1:].max(initial=0.0)),
            }
        )
        table.loc[0, ["gap_low", "gap_high", "p_pair", "p"]] = np.nan  # the leader isn't compared with itself
        table["apart"] = (table["p"] < LEVEL).astype(object).where(table["p"].notna(), None)
        return table

    def _chance_among_all(self, pairs: Pairs, smaller: Floats, chance: Floats) -> Floats:
        """The p-value by the studentised range; by Bonferroni over all pairs where there is no scatter."""
        k = int(np.isfinite(self.means).sum())
        if k <= 2:
            return chance
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.maximum(smaller, 0.0) / pairs.error * math.sqrt(2)
        by_range = stats.studentized_range.sf(q, k, pairs.freedom)
        return np.where(pairs.error == 0, np.minimum(chance * (k * (k - 1) / 2), 1.0), by_range)
