"""Sharpness of single layers' blocks of the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_BARS, inline
from tvlars_probe.charts.sharpness_words import OF, OPERATORS, measured_on, sharpness_subtitle
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from tvlars_probe.analyses.minimizer import Minimizer


def layer_blocks(result: Minimizer) -> alt.LayerChart:
    """Sharpness of each layer's own block at the last step at which blocks were measured.

    Blocks are the Hessian's, or of the first of the other operators where none of the Hessian is on record. Blocks of
    one kind are drawn: layers, or else single tensors. The sharpest `MOST_BARS` are drawn.

    Raises:
        NothingToShowError: no block has a sharpness that is a number.
    """
    rows = result.blocks[np.isfinite(result.blocks["value"].astype(float))]
    if not len(rows):
        raise NothingToShowError("no sharpness of a single layer is on record (tvlars-probe sharpness --per-layer)")
    operator = next((name for name in OPERATORS if name in {*rows["operator"]}), rows["operator"].iloc[0])
    rows = rows[rows["operator"] == operator]
    last = rows[rows["step"] == rows["step"].max()]
    of_last = last.iloc[-1]
    mode = (of_last["bn_mode"], of_last["split"])
    last = last[(last["bn_mode"] == mode[0]) & (last["split"] == mode[1])]
    last = last[last["scope_kind"] == of_last["scope_kind"]]
    # Where a block was measured again, its last row stands.
    every = last.drop_duplicates("scope", keep="last")
    rows = every.sort_values("value", ascending=False, kind="stable").head(MOST_BARS)
    rows = rows.rename(columns={"scope": "parameter"})[["parameter", "value", "error", "step"]]
    top = rows.iloc[0]
    order = rows["parameter"].tolist()
    which = "" if operator == "hessian" else f" of {OF.get(operator, operator)}"
    seen = f"The sharpest block{which} is {top['parameter']}, {theme.number(top['value'])} at step {top['step']:,}"
    of = sharpness_subtitle([result], measured_on(every), mode)
    if len(rows) < len(every):
        of += f"; the sharpest {len(rows)} of {len(every):,} blocks"
    base = alt.Chart(inline(rows), title=theme.title(seen, of)).encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=theme.name_axis(order)),
        opacity=alt.value(theme.where_picked(1.0, 0.2)),
        tooltip=[
            alt.Tooltip("parameter:N", title="layer"),
            alt.Tooltip("value:Q", title="sharpness", format=".4~g"),
            alt.Tooltip("error:Q", title="residual", format=".2~g"),
        ],
    )
    bars = base.mark_bar(color=theme.OPTIMIZER_COLOURS.get(str(result.facts.optimizer), theme.OTHER_COLOUR)).encode(
        x=alt.X("value:Q", title=f"sharpness of the layer's block λ₁{which}")
    )
    return bars.add_params(*theme.picked()).properties(width=theme.WIDTH, height=min(max(18 * len(rows), 60), 640))
