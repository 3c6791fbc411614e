"""Which layers exploded when, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np

from tvlars_probe.analyses.explosions import QUANTITIES
from tvlars_probe.analyses.wording import some_of
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_BARS, inline

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.warmup.analysis import Warmup


def explosion_timeline(result: Warmup) -> alt.LayerChart:
    """A bar per explosion, from its first step to its recovery, with a diamond at its peak.

    A bar without recovery reaches to the end of the trace. Of more than `MOST_BARS` tensors the worst are drawn.
    """
    found = result.explosions[result.explosions["exploded"]]
    end = found["first_step"] + found["recovery_steps"]
    found = found.assign(
        end=end.fillna(result.last_step + 1),
        recovered=np.where(end.notna(), "yes", "not while recorded"),
        what=found["quantity"].map(QUANTITIES),
    )
    of = [f"{result.facts.name}: {result.facts.method}{result.facts.sampling}"]
    of.append(f"beyond {result.thresholds.explosion:g} times start and later median")
    seen = _seen(result, found)  # of all tensors, before the worst are chosen
    exploded = found["parameter"].nunique()
    if exploded > MOST_BARS:
        of.append(f"the worst {MOST_BARS} of {exploded:,} tensors")
        found = found[found["parameter"].isin(_worst(found))]
    heading = theme.title(seen, "; ".join(of))
    if not len(found):
        return _calm(float(result.last_step), heading)
    order = [str(name) for name in result.layers["parameter"]]
    there = {*found["parameter"]}
    names = [name for name in order if name in there]
    columns = ["parameter", "what", "first_step", "end", "peak_step", "peak_over_median", "recovered"]
    # The bars of one layer share its band: a quantity that never exploded takes no room in it.
    whats = [QUANTITIES[name] for name in QUANTITIES if name in {*found["quantity"]}]
    base = alt.Chart(inline(found[columns])).encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=theme.name_axis(names)),
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
    # The whole trace, not the explosions' part of it.
    span = alt.Scale(domain=[min(0, result.last_step), result.last_step + 1], nice=False)
    bars = base.mark_bar(height={"band": 0.8}).encode(x=theme.step_axis("first_step:Q", span), x2="end:Q")
    peaks = base.mark_point(shape="diamond", filled=True, size=60, stroke="white", strokeWidth=1).encode(
        x=theme.step_axis("peak_step:Q", span),
        yOffset=alt.YOffset("what:N", sort=whats, scale=alt.Scale(domain=whats), bandPosition=0.5),
    )
    return (
        (bars + peaks)
        .add_params(*theme.picked())
        .properties(width=theme.WIDTH, height=min(max(30 * found["parameter"].nunique(), 60), 640), title=heading)
    )


def _seen(result: Warmup, found: pd.DataFrame) -> str:
    """The title: how many tensors explode early, and which ones first. Where none does, the same of the later ones."""
    if not len(found):
        return "No layer exploded"
    early = found[found["first_step"] <= result.last_early]
    told, until = early if len(early) else found, f"{min(result.last_early, result.last_step):,}"
    share = told["parameter"].nunique() / max(len(result.layers), 1)
    step = told["first_step"].min()
    at_once = {*told.loc[told["first_step"] == step, "parameter"]}
    first = [str(name) for name in result.layers["parameter"] if name in at_once]
    which = f"{some_of(first, room=30)} first, at step {step:,.0f}"
    if len(early):
        return f"{share:.0%} of the tensors explode early (to step {until}), {which}"
    return f"No tensor explodes early (to step {until}); {share:.0%} do later, {which}"


def _worst(found: pd.DataFrame) -> list[str]:
    """The tensors with the highest peak over their later median; infinite and undefined ratios come first."""
    # A ratio is undefined where no later value is finite: such a tensor isn't seen to recover.
    height = found["peak_over_median"].astype(float).fillna(np.inf)
    return [str(name) for name in height.groupby(found["parameter"]).max().nlargest(MOST_BARS).index]


def _calm(last: float, heading: alt.TitleParams) -> alt.LayerChart:
    """The timeline of a run without explosions: an axis, and "none" on it."""
    rows = alt.InlineData(values=[{"first": 0, "last": last, "middle": last / 2}])
    # A trace of one step would make an axis of no length.
    x = theme.step_axis("first:Q", alt.Scale(domain=[0, max(last, 1.0)], nice=False))
    line = alt.Chart(rows).mark_rule(opacity=0.3).encode(x=x, x2="last:Q")
    text = alt.Chart(rows).mark_text(dy=-12).encode(x=alt.X("middle:Q"), text=alt.value("none"))
    return (line + text).properties(width=theme.WIDTH, height=60, title=heading)
