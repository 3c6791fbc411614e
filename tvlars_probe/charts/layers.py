"""Layer × step heat maps, and the terms of every layer's effective rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.wording import some_of
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
"""What a heat map shows, with its label."""

_POWERS = [10.0**k for k in range(-30, 12)]
"""Lines of the panels' axes. All panels have one axis but a range each: it holds every power that may occur."""

_PANELS = {
    "rate": "effective rate",
    "schedule": "schedule lr / peak",
    "phi": "φ",
    "norm_ratio": "norm ratio ‖w‖/‖d‖",
    "clip": "clip",
}
"""The panels of a decomposition from top to bottom, by the name of their term."""


def heat_map(
    quantity: str,
    values: NDArray[np.floating],
    steps: NDArray[np.int64],
    parameters: tuple[str, ...],
    facts: RunFacts,
) -> Any:
    """A heat map of one quantity by layer and step, on a logarithmic scale, in the cells that `cells` makes.

    The title's highest value is sought in ``values`` and not in the cells.

    Args:
        quantity: one of `QUANTITIES`.
        values: (T, P).
        steps: (T,), ascending.
        parameters: (P,).
        facts: of the run.
    """
    label = QUANTITIES[quantity]
    found = cells(steps, parameters, values)
    seen = f"{label[:1].upper()}{label[1:]} of every layer"
    # A tensor that isn't adapted has trust ratio 1 throughout, which may be far above all others: it is passed over.
    flags = facts.flag("adapted", parameters)
    top = _highest(values, [quantity != "trust_ratio" or flag is not False for flag in flags])
    if top is not None:
        row, column = top
        seen += f": highest in {parameters[column]}, {theme.number(values[top])} at step {steps[row]:,}"
    of = _of(facts)
    if len(found.unshown):
        bad = unshowable(values)
        row = int(bad.any(axis=1).argmax())  # rows are steps: the first is the earliest
        names = [parameters[column] for column in np.flatnonzero(bad[row])]
        of += f"; red: infinite, NaN or missing (first in {some_of(names, room=40)}, at step {steps[row]:,})"
    return _heat(found, label, theme.title(seen, of))


def _highest(values: NDArray[np.floating], sought: list[bool]) -> tuple[int, int] | None:
    """Row and column of the highest finite value in the columns that are ``sought``; None where there is none."""
    there = np.isfinite(values) & np.array(sought, bool)
    if not there.any():
        return None
    row, column = np.unravel_index(int(np.where(there, values, -np.inf).argmax()), values.shape)
    return int(row), int(column)


def _heat(found: Cells, label: str, title: alt.TitleParams) -> Any:
    """The cells, and on top of them red ones for the bins with a value that has no place on the scale."""
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
    # Vega-Lite passes ``usermeta`` over. A page reads in it which layers a group holds.
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
    """The effective rate of every layer, above the factors that it is the product of.

    Each has a panel. A factor that is 1 throughout has none; peak rate and eta stand in the title.
    """
    panels = {name: label for name, label in _PANELS.items() if name == "rate" or _varies(split, name)}
    shown = _shown(len(split.parameters))
    frame = _factors(split, list(panels), shown)
    constant = [f"peak lr {theme.number(split.peak_lr)}"]
    eta = split.terms["eta"]  # its logarithm, 0 where a tensor isn't adapted
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
        # A row holds all factors of a step: Vega unfolds them, so that the chart holds fewer rows.
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
    """Whether a factor differs from 1 anywhere; its term is the logarithm."""
    term = split.terms[name]
    return bool(np.isfinite(term).any() and np.nanmax(np.abs(term)) > 1e-9)


def _shown(tensors: int) -> list[int]:
    """Columns of the tensors that have a line: all, or `MOST_LAYERS` of them, evenly chosen."""
    return edges(tensors, MOST_LAYERS)[:-1].tolist()


def _factors(split: Decomposition, panels: list[str], shown: list[int]) -> pd.DataFrame:
    """Per layer, the factors in the steps at which its rate is lowest and highest in each bin.

    These are recorded steps, no averages: their factors multiply to the rate.

    Returns:
        ``parameter``, ``role``, ``step``, and a column per panel.
    """
    # A bin keeps two rows of each layer.
    cuts = edges(len(split.steps), max(MOST_ROWS // max(2 * len(shown), 1), 1))
    frames = []
    for column in shown:
        kept = extremes(split.log_rate[:, column], cuts)
        if len(cuts) - 1 == len(split.steps):  # a bin per step: all of them stay
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
    """The subtitle of one run."""
    return f"{facts.name}: {facts.method}"
