"""Layer × step heat maps, and the terms of every layer's effective rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, MOST_LAYERS, MOST_ROWS, cells, edges, extremes, inline, unshowable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.rates import Decomposition
    from tvlars_probe.charts.binning import Cells

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
) -> Any:
    """One quantity of every layer and step, on a logarithmic scale; of each bin the rarest values are shown."""
    label = QUANTITIES[quantity]
    found = cells(steps, parameters, values)
    seen = f"{label[:1].upper()}{label[1:]} of every layer"
    # A tensor without a trust ratio of its own is at 1 throughout: the highest is sought among the others.
    flags = facts.flag("adapted", parameters)
    top = _highest(values, [quantity != "trust_ratio" or flag is not False for flag in flags])
    if top is not None:
        row, column = top
        seen += f": highest in {parameters[column]}, {theme.number(values[top])} at step {steps[row]:,}"
    of = _of(facts)
    if len(found.unshown):
        row, column = np.argwhere(unshowable(values))[0]
        of += f"; red: infinite, NaN or missing (first in {parameters[column]}, at step {steps[row]:,})"
    return _heat(found, label, theme.title(seen, of))


def _highest(values: NDArray[np.floating], sought: list[bool]) -> tuple[int, int] | None:
    """Row and column of the highest finite value among some columns; None where there is none."""
    there = np.isfinite(values) & np.array(sought, bool)
    if not there.any():
        return None
    row, column = np.unravel_index(int(np.where(there, values, -np.inf).argmax()), values.shape)
    return int(row), int(column)


def _heat(found: Cells, label: str, title: alt.TitleParams) -> Any:
    """The cells, and on top of them those that have no place on the scale."""
    scale = alt.Scale(type="log", scheme=theme.SEQUENTIAL)
    y = alt.Y(
        "parameter:N", sort=found.order, title=None, axis=alt.Axis(labelOverlap=True, ticks=False, labelLimit=180)
    )
    tips = [alt.Tooltip("parameter:N", title="layer"), alt.Tooltip("first:Q", title="from step", format=",")]
    size = {"width": theme.WIDTH, "height": min(max(18 * len(found.order), 60), 640)}
    base = alt.Chart(inline(found.shown, MOST_CELLS)).mark_rect(clip=True, strokeWidth=0)
    shown = base.encode(
        x=alt.X("first:Q", title="step", scale=alt.Scale(nice=False, zero=False)),
        x2="end:Q",
        y=y,
        color=alt.Color("value:Q", scale=scale, title=label, legend=alt.Legend(gradientLength=240, format="~g")),
        opacity=alt.value(theme.where_picked(1.0, 0.2)),
        tooltip=[
            *tips,
            alt.Tooltip("value:Q", title=label, format=".4~g"),
            alt.Tooltip("low:Q", title="lowest in the bin", format=".4~g"),
            alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
        ],
    )
    further = {"title": title, "usermeta": {"groups": found.groups}} if found.groups else {"title": title}
    if not len(found.unshown):
        return shown.add_params(*theme.picked()).properties(**size, **further)
    marks = (
        alt.Chart(inline(found.unshown, MOST_CELLS))
        .mark_rect(clip=True, strokeWidth=0, color=theme.BAD_COLOUR)
        .encode(x="first:Q", x2="end:Q", y=y, opacity=alt.value(theme.where_picked(1.0, 0.2)), tooltip=tips)
    )
    return alt.layer(shown, marks).add_params(*theme.picked()).properties(**size, **further)


def decomposition(split: Decomposition) -> alt.FacetChart:
    """The effective rate of every layer, above the factors that it is the product of."""
    panels = {name: label for name, label in _PANELS.items() if name == "rate" or _varies(split, name)}
    shown = _shown(len(split.parameters))
    frame = _factors(split, list(panels), shown)
    constant = [f"peak lr {theme.number(split.peak_lr)}"]
    eta = split.terms["eta"]
    if np.isfinite(eta).any() and np.nanmin(eta) < 0:
        constant.append(f"eta {theme.number(float(np.exp(np.nanmin(eta))))}")
    seen = "Effective rate = " + " × ".join([*constant, *(v for k, v in panels.items() if k != "rate")])
    of, further = _of(split.facts), {}
    if len(shown) < len(split.parameters):
        names = [split.parameters[column] for column in shown]
        of += f"; {len(names)} of {theme.counted(len(split.parameters), 'tensor')}, evenly chosen"
        further = {"usermeta": {"only": names}}
    roles = list(dict.fromkeys(frame["role"])) or ["adapted"]
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.4, clip=True, interpolate="step-after", point=len(split.steps) == 1)
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
        .add_params(*theme.picked())
        .properties(title=theme.title(seen, of), **further)
    )


def _varies(split: Decomposition, name: str) -> bool:
    term = split.terms[name]
    return bool(np.isfinite(term).any() and np.nanmax(np.abs(term)) > 1e-9)


def _shown(tensors: int) -> list[int]:
    """Which tensors have a line of their own: all, or as many as a chart shows, evenly chosen."""
    return edges(tensors, MOST_LAYERS)[:-1].tolist()


def _factors(split: Decomposition, panels: list[str], shown: list[int]) -> pd.DataFrame:
    """Per layer the steps at which its rate is lowest and highest in each bin: real rows, whose factors multiply."""
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
