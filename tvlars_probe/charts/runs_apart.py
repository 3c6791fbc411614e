"""What tells the lines of one chart apart: the colour of their optimizer, and a pattern of dashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from tvlars_probe.charts import theme

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.settings import Setting

_SCHEDULE_DASHES = {"none": [1, 0], "lars-warm": [5, 3], "cosine": [2, 2]}
DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 1], [1, 4], [9, 2, 2, 2, 2, 2]]
"""Lengths of strokes and gaps in turn; [1, 0] is a plain line."""


def labels(facts: RunFacts) -> dict[str, str]:
    """The columns by which charts tell runs apart."""
    return {"run": facts.name, "optimizer": facts.optimizer or "other", "schedule": facts.schedule or "none"}


def apart(names: Sequence[str], optimizers: Sequence[str], settings: Sequence[Setting], title: str) -> dict[str, Any]:
    """Encodings that tell lines apart, in grey, too: each has dashes of its own, as long as there are enough.

    Args:
        names: of the lines; a setting has one name at all of its rates.
        optimizers: of each line.
        settings: of each line.
        title: of the legend: "run" or "setting".
    """
    of = dict(zip(names, optimizers, strict=True))
    lines = [*of]
    if len(lines) > len(DASHES) or len(lines) == 1:
        colour = alt.Color("optimizer:N", scale=theme.optimizer_scale(optimizers), title="optimizer")
        schedules = [*dict.fromkeys(s.runs[0].schedule or "none" for s in settings)]
        return {"color": colour, "strokeDash": _schedule_dash(schedules)}
    # The names of runs needn't say their method: there the colours have a legend of their own.
    legend = theme.name_legend(lines, columns=2 if title == "setting" else 3, symbolSize=400, symbolType="stroke")
    dash = alt.StrokeDash(
        "line:N", title=title, scale=alt.Scale(domain=lines, range=DASHES[: len(lines)]), legend=legend
    )
    if title == "run":
        colour = alt.Color("optimizer:N", scale=theme.optimizer_scale(optimizers), title="optimizer")
    else:
        colours = [theme.OPTIMIZER_COLOURS.get(of[line], theme.OTHER_COLOUR) for line in lines]
        colour = alt.Color("line:N", title=title, scale=alt.Scale(domain=lines, range=colours), legend=legend)
    return {"color": colour, "strokeDash": dash}


def run_dash(frame: pd.DataFrame) -> alt.StrokeDash:
    """Dash patterns of runs: each its own as long as there are enough, else one a schedule.

    Args:
        frame: columns ``run`` and ``schedule``.
    """
    runs = frame.reindex(columns=["run", "schedule"]).drop_duplicates("run")
    names = runs["run"].tolist()
    if 1 < len(names) <= len(DASHES):
        legend = theme.name_legend(names, columns=3, symbolSize=400)
        scale = alt.Scale(domain=names, range=DASHES[: len(names)])
        return alt.StrokeDash("run:N", scale=scale, title="run", legend=legend)
    return _schedule_dash(runs["schedule"].drop_duplicates().tolist())


def _schedule_dash(schedules: list[str]) -> alt.StrokeDash:
    scale = alt.Scale(domain=schedules, range=[_SCHEDULE_DASHES.get(name, [8, 3, 2, 3]) for name in schedules])
    return alt.StrokeDash("schedule:N", scale=scale, title="schedule")
