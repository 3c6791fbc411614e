"""What tells the runs of one chart apart: the colour of their optimizer, and a pattern of dashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from tvlars_probe.charts import theme

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts

_SCHEDULE_DASHES = {"none": [1, 0], "lars-warm": [5, 3], "cosine": [2, 2]}
_RUN_DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 1], [1, 4], [9, 2, 2, 2, 2, 2]]
"""Lengths of strokes and gaps in turn; [1, 0] is a plain line."""


def labels(facts: RunFacts) -> dict[str, str]:
    """The columns by which charts tell runs apart."""
    return {"run": facts.name, "optimizer": facts.optimizer or "other", "schedule": facts.schedule or "none"}


def run_dash(frame: pd.DataFrame) -> alt.StrokeDash:
    """Dash patterns, which tell apart the runs that share an optimizer's colour.

    Each schedule has the same pattern in every chart. Where runs share their schedule as well, each run of a colour has
    its own pattern instead, as long as there are enough.

    Args:
        frame: columns ``run``, ``optimizer`` and ``schedule``.
    """
    runs = frame.reindex(columns=["run", "optimizer", "schedule"]).drop_duplicates("run")
    place = runs.groupby("optimizer").cumcount()
    if runs.duplicated(["optimizer", "schedule"]).any() and place.max() < len(_RUN_DASHES):
        names = runs["run"].tolist()
        scale = alt.Scale(domain=names, range=[_RUN_DASHES[k] for k in place])
        legend = theme.name_legend(names, columns=3, symbolSize=400)
        return alt.StrokeDash("run:N", scale=scale, title="run", legend=legend)
    schedules = runs["schedule"].drop_duplicates().tolist()
    scale = alt.Scale(domain=schedules, range=[_SCHEDULE_DASHES.get(name, [8, 3, 2, 3]) for name in schedules])
    return alt.StrokeDash("schedule:N", scale=scale, title="schedule")
