"""Pairs of runs with warm-up and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from tvlars_probe.analyses.verdict import CANT_TELL
from tvlars_probe.analyses.warmup.paired_gain import UNKNOWN
from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_BARS, inline
from tvlars_probe.charts.names import pixels, shortened
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.warmup.pairs import WarmupPairs

PAIR_ROOM = 520.0
"""Width of the names of a pair of runs."""

MOST_OUTCOMES = 2
"""Most outcomes that a title tells one by one."""


def _outcomes(cells: pd.DataFrame) -> str:
    """How many of the cells had which outcome: each in words would fill a title."""
    counts = cells["outcome"].value_counts()
    told = ", ".join(f"{n} {CANT_TELL if outcome == UNKNOWN else outcome}" for outcome, n in counts.items())
    return f"{len(cells)} settings and peak rates: {told}."


def warmup_pairs_chart(result: WarmupPairs) -> alt.LayerChart | alt.FacetChart:
    """Test accuracy without and with warm-up, a line per pair of runs. Of more than `MOST_BARS` the first are drawn.

    Raises:
        NothingToShowError: no pair has an accuracy.
    """
    sides = ["accuracy_without", "accuracy_with"]
    every = result.pairs.astype(dict.fromkeys(sides, float))
    # A run that diverged before its first epoch's end has no accuracy: its pair shows that of the other one.
    every = every[every[sides].notna().any(axis=1)]
    if not len(every):
        reason = "no pair of runs has an accuracy" if len(result.pairs) else result.verdict.reason.removesuffix(".")
        raise NothingToShowError(f"{reason}: train one without warm-up and one with --schedule lars-warm")
    pairs = every.head(MOST_BARS).copy()
    runs = shortened([*pairs["run_without"], *pairs["run_with"]], theme.NAME_ROOM * 0.75, pixels)
    pairs["pair"] = [
        f"peak {row.peak_lr:g}, seed {row.seed}: {runs[str(row.run_without)]}, {runs[str(row.run_with)]}"
        for row in pairs.itertuples()
    ]
    pairs["optimizer"] = pairs["optimizer"].fillna("other")
    columns = ["pair", "optimizer", *sides, "gain", "run_without", "run_with"]
    of = [result.verdict.reason if len(result.cells) <= MOST_OUTCOMES else _outcomes(result.cells)]
    if len(every) > len(pairs):
        of.append(f"The first {len(pairs)} of {counted(len(every), 'pair')}.")
    if without := len(result.pairs) - len(every):
        of.append(f"{counted(without, 'pair')} without an accuracy.")
    names = pairs["pair"].tolist()
    base = alt.Chart(inline(pairs[columns])).encode(
        y=alt.Y("pair:N", title=None, sort=names, axis=theme.name_axis(names, PAIR_ROOM)),
        color=alt.Color("optimizer:N", scale=theme.optimizer_scale(pairs["optimizer"]), title="optimizer"),
        tooltip=[
            "run_without:N",
            "run_with:N",
            alt.Tooltip("accuracy_without:Q", format=".2f"),
            alt.Tooltip("accuracy_with:Q", format=".2f"),
            alt.Tooltip("gain:Q", format="+.2f"),
        ],
    )
    x: dict[str, Any] = {
        "title": "test accuracy (%): hollow without, filled with warm-up",
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(tickCount=8, format=".4~g"),
    }
    both = "isValid(datum.accuracy_without) && isValid(datum.accuracy_with)"
    rule = base.transform_filter(both).mark_rule(strokeWidth=1.5)
    return alt.layer(
        rule.encode(x=alt.X("accuracy_without:Q", **x), x2="accuracy_with:Q"),
        base.mark_point(size=70).encode(x=alt.X("accuracy_without:Q", **x)),
        base.mark_point(size=70, filled=True).encode(x=alt.X("accuracy_with:Q", **x)),
    ).properties(
        width=theme.WIDTH,
        height=max(28 * len(pairs), 70),
        title=theme.title(f"Warm-up: {result.verdict.answer}", " ".join(of)),
    )
