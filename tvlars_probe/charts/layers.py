"""Layer × step heat maps, and the terms of every layer's effective rate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import (
    MOST_CELLS,
    MOST_LAYERS,
    MOST_ROWS,
    cells,
    edges,
    extremes,
    inline,
    pieces,
    unshowable,
)
from tvlars_probe.charts.limits import Limits
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.rates import Decomposition
    from tvlars_probe.charts.binning import Cells

QUANTITIES = {
    "trust_ratio": "trust ratio",
    "lnr": "norm ratio ‖w‖/‖g‖",
    "grad_norm": "gradient norm ‖g‖",
    "relative_update": "relative update ‖Δw‖/‖w‖",
    "update_rms": "RMS of the update Δw",
    "weight_spectral_norm": "spectral norm of the weights",
    "update_spectral_norm": "spectral norm of the update",
}
"""What a heat map shows, with its label."""

OF_MATRICES = {"weight_spectral_norm", "update_spectral_norm"}
"""Those that a vector has none of."""

_POWERS = [10.0**k for k in range(-30, 12)]
"""Lines of the panels' axes. All panels have one axis but a range each: it holds every power that may occur."""

_PANEL = 110
"""Height of a panel."""

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

    Raises:
        NothingToShowError: no value is finite and above zero.
    """
    refuse_nothing(quantity, values, facts)
    label = QUANTITIES[quantity]
    found = cells(steps, parameters, values)
    seen = f"{label[:1].upper()}{label[1:]} of every {'matrix' if quantity in OF_MATRICES else 'layer'}"
    # A tensor that isn't adapted has trust ratio 1 throughout, which may be far above all others: it is passed over.
    flags = facts.flag("adapted", parameters)
    top = _highest(values, [quantity != "trust_ratio" or flag is not False for flag in flags])
    low, high = found.shown["low"].min(), found.shown["high"].max()
    if low == high:
        seen += f": {theme.number(low)} throughout"
    elif top is not None:
        row, column = top
        seen += f": highest in {parameters[column]}, {theme.number(values[top])} at step {steps[row]:,}"
    limits = Limits.of([part for _, part in found.shown.groupby("parameter", sort=False)["value"]])
    return _heat(found, label, limits, theme.title(seen, _told(found, limits, values, steps, parameters, facts)))


def refuse_nothing(quantity: str, values: NDArray[np.floating], facts: RunFacts) -> None:
    """Refuse a heat map without a value that has a colour.

    Raises:
        NothingToShowError: no value is finite and above zero.
    """
    if not (np.isfinite(values) & (values > 0)).any():
        raise NothingToShowError(
            f"the {QUANTITIES[quantity]} of every layer of {facts.name} is zero, not finite, or not on record: "
            f"tvlars-probe show tells how the run went"
        )


def _told(
    found: Cells,
    limits: Limits | None,
    values: NDArray[np.floating],
    steps: NDArray[np.int64],
    parameters: tuple[str, ...],
    facts: RunFacts,
) -> str:
    """The subtitle: of which run, how many layers are in a row, and what the colours leave out."""
    of = [_of(facts)]
    if found.groups:
        of.append(f"{counted(len(parameters), 'layer')} in {counted(len(found.order), 'row')}")
    if len(found.unshown):
        bad = unshowable(values)
        row = int(bad.any(axis=1).argmax())  # rows are steps: the first is the earliest
        names = [parameters[column] for column in np.flatnonzero(bad[row])]
        of.append(f"red: infinite, NaN or missing (first in {some_of(names, room=40)}, at step {steps[row]:,})")
    if len(found.zeros):
        of.append("grey: zero")
    if limits is not None:
        value = found.shown["value"]
        cut = ((limits.low, value < limits.low), (limits.high, value > limits.high))
        of += [f"colours end at {theme.number(end)}" for end, beyond in cut if beyond.any()]
    return "; ".join(of)


def _highest(values: NDArray[np.floating], sought: list[bool]) -> tuple[int, int] | None:
    """Row and column of the highest finite value in the columns that are ``sought``; None where there is none."""
    there = np.isfinite(values) & np.array(sought, bool)
    if not there.any():
        return None
    row, column = np.unravel_index(int(np.where(there, values, -np.inf).argmax()), values.shape)
    return int(row), int(column)


def _heat(found: Cells, label: str, limits: Limits | None, title: alt.TitleParams) -> Any:
    """The cells, and on top of them those of bins with a value that has no place on the scale."""
    domain = alt.Undefined if limits is None else [limits.low, limits.high]
    scale = alt.Scale(type="log", scheme=theme.SEQUENTIAL, domain=domain, clamp=True)
    axis = theme.name_axis(found.order, groups=found.groups, labelOverlap=True, ticks=False)
    x = theme.step_axis("first:Q", alt.Scale(nice=False, zero=False))
    y = alt.Y("parameter:N", sort=found.order, title=None, axis=axis)
    opacity = alt.value(theme.where_picked(1.0, 0.2))
    tips = [alt.Tooltip("parameter:N", title="layer"), alt.Tooltip("first:Q", title="from step", format=",")]
    base = alt.Chart(inline(found.shown, MOST_CELLS)).mark_rect(clip=True, strokeWidth=0)
    legend = alt.Legend(gradientLength=240, format=theme.log_format(found.shown["value"]))
    shown = base.encode(
        x=x,
        x2="end:Q",
        y=y,
        color=alt.Color("value:Q", scale=scale, title=label, legend=legend),
        opacity=opacity,
        tooltip=[
            *tips,
            alt.Tooltip("value:Q", title=label, format=".4~g"),
            alt.Tooltip("low:Q", title="lowest in the bin", format=".4~g"),
            alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
        ],
    )
    marked = [
        alt.Chart(inline(rows, MOST_CELLS))
        .mark_rect(clip=True, strokeWidth=0, color=colour)
        .encode(x=x, x2="end:Q", y=y, opacity=opacity, tooltip=tips)
        for rows, colour in ((found.zeros, theme.OTHER_COLOUR), (found.unshown, theme.BAD_COLOUR))
        if len(rows)
    ]
    # Vega-Lite passes ``usermeta`` over. A page reads in it which layers a group holds.
    further = {"title": title, "usermeta": {"groups": found.groups}} if found.groups else {"title": title}
    chart = alt.layer(shown, *marked) if marked else shown
    size = {"width": theme.WIDTH, "height": min(max(18 * len(found.order), 60), 640)}
    return chart.add_params(*theme.picked()).properties(**size, **further)


def decomposition(split: Decomposition) -> alt.FacetChart:
    """The effective rate of every layer, above the factors that it is the product of.

    Each has a panel. A factor that is 1 throughout has none; peak rate and eta stand in the title.

    Raises:
        NothingToShowError: no rate is known.
    """
    panels = {name: label for name, label in _PANELS.items() if name == "rate" or _varies(split, name)}
    shown = _shown(len(split.parameters))
    frame = _factors(split, list(panels), shown).rename(columns=panels)
    if not len(frame):
        what = "every trust ratio or learning rate is unknown" if split.unknown else "every rate is zero"
        raise NothingToShowError(f"no effective rate above zero is on record in {split.facts.name}: {what}")
    constant = [f"peak lr {_each(split.peaks[split.peaks > 0])}"]
    eta = split.terms["eta"]  # its logarithm, 0 where a tensor isn't adapted
    if np.isfinite(eta).any() and np.nanmin(eta) < 0:
        constant.append(f"eta {_each(np.exp(eta[eta < 0]))}")
    seen = "Effective rate = " + " × ".join([*constant, *(v for k, v in panels.items() if k != "rate")])
    of, further = [_of(split.facts)], {}
    if len(shown) < len(split.parameters):
        names = [split.parameters[column] for column in shown]
        of.append(f"{len(names)} of {counted(len(split.parameters), 'tensor')}, evenly chosen")
        further = {"usermeta": {"only": names}}
    for count, what in ((split.vanished, "zero"), (split.unknown, "unknown")):
        if count:
            of.append(f"not drawn: {counted(count, 'rate')} of {split.log_rate.size:,}, {what}")
    lines, beyond = _terms(frame, list(panels.values()))
    if beyond:
        of.append("▲▼ beyond the axis")
    return (
        # A row holds all factors of a step: Vega unfolds them, so that the chart holds fewer rows.
        alt.layer(*lines, data=inline(frame))
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
        .properties(title=theme.title(seen, "; ".join(of)), **further)
    )


def _each(values: NDArray[np.floating]) -> str:
    """A factor that belongs to a parameter group: its values in words, "1 or 4" or "0.5 to 4"."""
    found = [*dict.fromkeys(theme.number(float(value)) for value in np.unique(values))]
    return " or ".join(found) if 0 < len(found) < 3 else f"{found[0]} to {found[-1]}" if found else "0"


def _terms(frame: pd.DataFrame, panels: list[str]) -> tuple[list[alt.Chart], bool]:
    """The lines of one panel, and marks for what lies beyond its axis.

    Returns:
        the layers, and whether anything lies beyond.
    """
    groups = [rows for _, rows in frame.groupby("parameter", sort=False)]
    found = {name: limits for name in panels if (limits := Limits.of([rows[name] for rows in groups])) is not None}
    beyond = any((frame[name].notna() & (frame[name] > 0) & ~found[name].within(frame[name])).any() for name in found)
    roles = list(dict.fromkeys(frame["role"]))
    colour = alt.Color(
        "role:N", title="layer", scale=alt.Scale(domain=roles, range=[theme.ROLE_COLOURS[r] for r in roles])
    )
    x = theme.step_axis("step:Q", alt.Scale(nice=False))
    tips = [
        alt.Tooltip("parameter:N", title="layer"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("term:N", title="term"),
        alt.Tooltip("factor:Q", format=".4~g"),
    ]
    # Panels have a range each: no domain can be set, so that the values themselves are cut at its ends. The values of
    # a chart are rounded, to less than a ten-thousandth.
    lowest = [limits.low * (1 - 1e-4) for limits in found.values()]
    highest = [limits.high * (1 + 1e-4) for limits in found.values()]
    ends = [f"{json.dumps(values)}[indexof({json.dumps([*found])}, datum.term)]" for values in (lowest, highest)]
    alone = not frame.duplicated(["parameter", "piece"], keep=False).all()  # a line through one point draws nothing
    lines = (
        alt.Chart()
        .transform_calculate(drawn=f"clamp(datum.factor, {ends[0]}, {ends[1]})")
        .mark_line(strokeWidth=1.4, clip=True, interpolate="step-after", point=alone)
        .encode(
            x=x,
            y=alt.Y(
                "drawn:Q",
                scale=alt.Scale(type="log"),
                title=None,
                axis=alt.Axis(values=_POWERS, format="~e", labelOverlap=True),
            ),
            detail=["parameter:N", "piece:N"],
            color=colour,
            opacity=alt.value(theme.where_picked(1.0, 0.08, 0.65)),
            tooltip=tips,
        )
        .properties(width=theme.WIDTH, height=_PANEL)
    )
    marks = [
        alt.Chart()
        .transform_filter(f"datum.factor {sign} {end}")
        .mark_point(shape=shape, filled=True, size=40)
        .encode(x=x, y=alt.value(place), color=colour, opacity=alt.value(theme.where_picked(1.0, 0.08)), tooltip=tips)
        for sign, end, shape, place in (("<", ends[0], "triangle-down", _PANEL - 4), (">", ends[1], "triangle-up", 4))
    ]
    return [lines, *(marks if beyond else ())], beyond


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
        ``parameter``, ``role``, ``step``, ``piece`` (stretches between gaps), and a column per panel.
    """
    # A bin keeps two rows of each layer.
    cuts = edges(len(split.steps), max(MOST_ROWS // max(2 * len(shown), 1), 1))
    frames = []
    for column in shown:
        there = np.flatnonzero(np.isfinite(split.log_rate[:, column]))
        # Where there is a bin per step, all of them stay.
        every = len(cuts) - 1 == len(split.steps)
        kept = there if every else extremes(split.log_rate[:, column], cuts)
        if not len(kept):
            continue
        terms = {"rate": split.log_rate, **split.terms}
        frames.append(
            pd.DataFrame(
                {
                    "parameter": split.parameters[column],
                    "role": "adapted" if split.adapted[column] else "not adapted",
                    "step": split.steps[kept],
                    "piece": pieces(split.steps[there])[np.searchsorted(there, kept)],
                    **{name: np.exp(terms[name][kept, column]) for name in panels},
                }
            )
        )
    return pd.concat(frames) if frames else pd.DataFrame(columns=["parameter", "role", "step", "piece", *panels])


def _of(facts: RunFacts) -> str:
    """The subtitle of one run."""
    return f"{facts.name}: {facts.method}{facts.sampling}"
