"""When which layers exploded, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np

from tvlars_probe.analyses.explosions import QUANTITIES
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_LAYERS, inline

if TYPE_CHECKING:
    from tvlars_probe.analyses.warmup import Warmup


def explosion_timeline(result: Warmup) -> alt.LayerChart:
    """A bar per explosion, from its first step to its recovery, with its peak as a point."""
    found = result.explosions[result.explosions["exploded"]].copy()
    last = float(result.explosions["peak_step"].max()) if len(result.explosions) else 0.0
    end = (found["first_step"] + found["recovery_steps"]).fillna(np.nan)
    found["end"] = end.fillna(max(last, float(found["first_step"].max()) if len(found) else 0.0) + 1)
    found["recovered"] = np.where(end.notna(), "yes", "not while recorded")
    found["what"] = found["quantity"].map(QUANTITIES)
    order = [str(name) for name in result.layers["parameter"]]
    worst = found.groupby("parameter")["peak_over_median"].max().nlargest(MOST_LAYERS).index
    found = found[found["parameter"].isin(worst)]
    share = found["parameter"].nunique() / max(len(order), 1)
    seen = "No layer exploded"
    if len(found):
        first = found.iloc[int(found["first_step"].to_numpy().argmin())]
        seen = f"{share:.0%} of the tensors explode, {first['parameter']} first, at step {first['first_step']:,.0f}"
    columns = ["parameter", "what", "first_step", "end", "peak_step", "peak_over_median", "recovered"]
    whats = [QUANTITIES[name] for name in QUANTITIES if name in {*found["quantity"]}]
    beyond = f"beyond {result.thresholds.explosion:g} times start and later median"
    heading = theme.title(seen, f"{result.facts.name}: {result.facts.method}; {beyond}")
    if not len(found):
        return _calm(last, heading)
    base = alt.Chart(inline(found[columns])).encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=alt.Axis(labelLimit=180)),
        yOffset=alt.YOffset("what:N", sort=whats, scale=alt.Scale(domain=whats)),
        color=alt.Color(
            "what:N",
            title=None,
            scale=alt.Scale(domain=whats, range=[theme.QUANTITY_COLOURS[w] for w in whats]),
            legend=alt.Legend(columns=1),
        ),
        opacity=alt.value(theme.where_picked(1.0, 0.15, 0.85)),
        tooltip=[
            alt.Tooltip("parameter:N", title="layer"),
            alt.Tooltip("what:N", title="explosion of"),
            alt.Tooltip("first_step:Q", title="first step", format=","),
            alt.Tooltip("peak_step:Q", title="peak step", format=","),
            alt.Tooltip("peak_over_median:Q", title="peak / later median", format=".4~g"),
            alt.Tooltip("recovered:N"),
        ],
    )
    bars = base.mark_bar(height={"band": 0.8}).encode(
        x=alt.X("first_step:Q", title="step", scale=alt.Scale(zero=True)), x2="end:Q"
    )
    peaks = base.mark_point(shape="diamond", filled=True, size=60, stroke="white", strokeWidth=1).encode(
        x=alt.X("peak_step:Q", title="step"),
        yOffset=alt.YOffset("what:N", sort=whats, scale=alt.Scale(domain=whats), bandPosition=0.5),
    )
    return (
        (bars + peaks)
        .add_params(theme.picked())
        .properties(width=theme.WIDTH, height=min(max(30 * found["parameter"].nunique(), 60), 640), title=heading)
    )


def _calm(last: float, heading: alt.TitleParams) -> alt.LayerChart:
    """The timeline of a run without explosions: an axis, and nothing on it."""
    rows = alt.InlineData(values=[{"first": 0, "last": last, "middle": last / 2}])
    x = alt.X("first:Q", title="step", scale=alt.Scale(domain=[0, max(last, 1.0)]))
    line = alt.Chart(rows).mark_rule(opacity=0.3).encode(x=x, x2="last:Q")
    text = alt.Chart(rows).mark_text(dy=-12).encode(x=alt.X("middle:Q", title="step"), text=alt.value("none"))
    return (line + text).properties(width=theme.WIDTH, height=60, title=heading)
