"""Layer × step heat maps, and the terms of every layer's effective rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, MOST_LAYERS, MOST_ROWS, cells, edges, extremes, inline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.rates import Decomposition

QUANTITIES = {
    "trust_ratio": "trust ratio",
    "lnr": "norm ratio ‖w‖/‖g‖",
    "grad_norm": "gradient norm ‖g‖",
}

_POWERS = [10.0**k for k in range(-30, 12)]
_PANELS = {
    "rate": "effective rate",
    "schedule": "schedule lr / peak",
    "phi": "φ",
    "norm_ratio": "norm ratio ‖w‖/‖d‖",
    "clip": "clip",
}


def heat_map(
    quantity: str,
    values: NDArray[np.floating],
    steps: NDArray[np.int64],
    parameters: tuple[str, ...],
    facts: RunFacts,
) -> alt.LayerChart | alt.Chart:
    """One quantity of every layer and step, on a logarithmic scale; the rarest cell of each bin is shown."""
    label = QUANTITIES[quantity]
    frame = cells(steps, parameters, values)
    seen = f"{label[:1].upper()}{label[1:]} of every layer"
    # A tensor without a trust ratio of its own is at 1 throughout: the highest is sought among the others.
    plain = [p for p, flag in zip(parameters, facts.flag("adapted", parameters), strict=True) if flag is False]
    told = frame[~frame["parameter"].isin(plain)] if quantity == "trust_ratio" else frame
    if len(told):
        top = told.iloc[int(told["value"].to_numpy().argmax())]
        seen += f": highest in {top['parameter']}, {theme.number(top['value'])} at step {top['first']:,}"
    return _heat(frame, label, alt.Scale(type="log", scheme=theme.SEQUENTIAL), title=theme.title(seen, _of(facts)))


def _heat(frame: pd.DataFrame, label: str, scale: alt.Scale, *, title: alt.TitleParams) -> alt.Chart:
    order = frame.sort_values("order")["parameter"].drop_duplicates().tolist() if len(frame) else []
    return (
        alt.Chart(inline(frame.drop(columns="order"), MOST_CELLS), title=title)
        .mark_rect(clip=True, strokeWidth=0)
        .encode(
            x=alt.X("first:Q", title="step", scale=alt.Scale(nice=False, zero=False)),
            x2="end:Q",
            y=alt.Y(
                "parameter:N", sort=order, title=None, axis=alt.Axis(labelOverlap=True, ticks=False, labelLimit=180)
            ),
            color=alt.Color("value:Q", scale=scale, title=label, legend=alt.Legend(gradientLength=240, format="~g")),
            opacity=alt.value(theme.where_picked(1.0, 0.2)),
            tooltip=[
                alt.Tooltip("parameter:N", title="layer"),
                alt.Tooltip("first:Q", title="from step", format=","),
                alt.Tooltip("value:Q", title=label, format=".4~g"),
                alt.Tooltip("low:Q", title="lowest in the bin", format=".4~g"),
                alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
            ],
        )
        .add_params(theme.picked())
        .properties(width=theme.WIDTH, height=min(max(18 * len(order), 60), 640))
    )


def decomposition(split: Decomposition) -> alt.FacetChart:
    """The effective rate of every layer, above the factors that it is the product of."""
    panels = {name: label for name, label in _PANELS.items() if name == "rate" or _varies(split, name)}
    frame = _factors(split, list(panels))
    constant = [f"peak lr {theme.number(split.peak_lr)}"]
    eta = split.terms["eta"]
    if np.isfinite(eta).any() and np.nanmin(eta) < 0:
        constant.append(f"eta {theme.number(float(np.exp(np.nanmin(eta))))}")
    seen = "Effective rate = " + " × ".join([*constant, *(v for k, v in panels.items() if k != "rate")])
    roles = list(dict.fromkeys(frame["role"])) or ["adapted"]
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.4, clip=True, interpolate="step-after")
        .encode(
            x=alt.X("step:Q", scale=alt.Scale(nice=False)),
            y=alt.Y(
                "factor:Q",
                scale=alt.Scale(type="log"),
                title=None,
                axis=alt.Axis(values=_POWERS, format="~e", labelOverlap=True),
            ),
            detail="parameter:N",
            color=alt.Color(
                "role:N", title="layer", scale=alt.Scale(domain=roles, range=[theme.ROLE_COLOURS[r] for r in roles])
            ),
            opacity=alt.value(theme.where_picked(1.0, 0.08, 0.65)),
            tooltip=[
                alt.Tooltip("parameter:N", title="layer"),
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("term:N", title="term"),
                alt.Tooltip("factor:Q", format=".4~g"),
            ],
        )
        .properties(width=theme.WIDTH, height=110)
    )
    return (
        alt.layer(lines, data=inline(frame.rename(columns=panels)))
        .transform_fold(list(panels.values()), as_=["term", "factor"])
        .transform_filter("datum.factor !== null && datum.factor > 0")
        .facet(
            row=alt.Row(
                "term:N",
                sort=list(panels.values()),
                title=None,
                header=alt.Header(labelOrient="top", labelAnchor="start"),
            )
        )
        .resolve_scale(y="independent")
        .add_params(theme.picked())
        .properties(title=theme.title(seen, _of(split.facts)))
    )


def _varies(split: Decomposition, name: str) -> bool:
    term = split.terms[name]
    return bool(np.isfinite(term).any() and np.nanmax(np.abs(term)) > 1e-9)


def _factors(split: Decomposition, panels: list[str]) -> pd.DataFrame:
    """Per layer the steps at which its rate is lowest and highest in each bin: real rows, whose factors multiply."""
    shown = range(len(split.parameters))
    if len(shown) > MOST_LAYERS:
        shown = range(0, len(split.parameters), -(-len(split.parameters) // MOST_LAYERS))
    cuts = edges(len(split.steps), max(MOST_ROWS // max(2 * len(shown), 1), 1))
    frames = []
    for column in shown:
        kept = extremes(split.log_rate[:, column], cuts)
        if len(cuts) - 1 == len(split.steps):
            kept = np.flatnonzero(np.isfinite(split.log_rate[:, column]))
        terms = {"rate": split.log_rate, **split.terms}
        frames.append(
            pd.DataFrame(
                {
                    "parameter": split.parameters[column],
                    "role": "adapted" if split.adapted[column] else "not adapted",
                    "step": split.steps[kept],
                    **{name: np.exp(terms[name][kept, column]) for name in panels},
                }
            )
        )
    return pd.concat(frames) if frames else pd.DataFrame(columns=["parameter", "role", "step", *panels])


def _of(facts: RunFacts) -> str:
    return f"{facts.name}: {facts.method}"
