"""Loss and accuracy over a run, several runs in one picture."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.settings import over_seeds, settings_of
from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, coarser, envelope, inline, thinned
from tvlars_probe.charts.limits import Limits, edge_marks, edge_words
from tvlars_probe.charts.lines import PANEL_HEIGHT, PANEL_TICKS, Named, arranged, banded, crosses, on_axis, tooltips
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts

    Curve = tuple[RunFacts, pd.DataFrame]

MOST_BINS = 400
"""Most bins of one run's loss."""

HEIGHT = 240
"""Height of a plot, in units of the chart."""

ASTRAY = 10.0
"""A run whose median loss is beyond this many times its first one counts as diverged."""

MOST_NEGATIVE = 0.05
"""Share of a run's bins with a negative loss beyond which the axis is linear."""

RISE = 0.05
"""Share of its first value by which a loss must rise for the title to name it."""


def loss_bins(steps: pd.DataFrame, bins: int = MOST_BINS) -> pd.DataFrame:
    """Bin the losses of a run for `loss_curves`, so that the rows themselves needn't be kept.

    Args:
        steps: columns ``step`` and ``loss``.
        bins: at most so many.

    Returns:
        an `envelope` of the loss, with the run's first loss as ``start``.
    """
    # Infinite losses stay, and show in ``high``.
    told = steps.dropna(subset="loss")
    loss = told["loss"].to_numpy(float)
    return envelope(told["step"].to_numpy(), loss, bins).assign(start=loss[0] if len(loss) else math.nan)


def loss_curves(runs: Sequence[Curve]) -> alt.LayerChart | alt.ConcatChart | alt.FacetChart:
    """Training loss by step, a line per setting: the geometric mean over its seeds, and the lowest to the highest seed.

    A setting of one run has each bin's median as its line, and the bin's lowest to highest value as its band. Beyond
    `lines.MOST_LINES` lines there is a panel for each peak rate. A cross at the top marks the first step at which a
    run's loss is not finite. Runs that diverged don't stretch the axis: triangles mark what reaches beyond it.

    Args:
        runs: per run its facts and its losses as `loss_bins` gave them.

    Raises:
        NothingToShowError: no run has a finite loss.
    """
    shown = [(facts, part) for facts, part in runs if len(part) or _not_finite(facts, part) is not None]
    ends = [(facts, step) for facts, part in shown if (step := _not_finite(facts, part)) is not None]
    named = Named.of(settings_of([facts for facts, _ in shown or runs])[:MOST_ROWS])
    # The lines share the rows of the chart.
    bins = max(min(MOST_BINS, MOST_ROWS // len(named.settings)), 1)
    few = [coarser(part, bins).rename(columns={"middle": "value"}) for _, part in shown or runs]
    is_log = not any(len(part) and (part["low"] < 0).mean() > MOST_NEGATIVE for part in few)
    # A loss that is zero throughout has no place on a logarithmic axis.
    is_log = is_log and any((part["value"] > 0).any() for part in few)
    curves = [
        few[s.places[0]] if len(s.runs) == 1 else over_seeds(s, [few[p] for p in s.places], "step", geometric=is_log)
        for s in named.settings
    ]
    starts = [float(few[s.places[0]]["start"].iloc[0]) if len(few[s.places[0]]) else math.nan for s in named.settings]
    limits = _loss_limits(named, curves, starts, {id(facts) for facts, _ in ends}, is_log=is_log)
    if limits is None:
        raise NothingToShowError(_no_loss(ends))
    frame = on_axis(named.frame([curve.drop(columns="start", errors="ignore") for curve in curves], "step"), limits)
    beyond = (frame[np.isfinite(frame["high"]) & (frame["high"] > limits.high)], frame[frame["low"] < limits.low])
    what = named.subtitle(geometric=is_log, one="median and range of each bin")
    what += [*(["✕ not finite"] if ends else []), *edge_words(*beyond, is_log=limits.is_log)]
    heading = theme.title(_loss_title(shown, ends), _subtitle(shown, "; ".join(what)))
    crossed = named.ends(ends[:MOST_ROWS], "step")
    steps = [*frame["step"], *crossed["step"]]
    domain = [int(min(steps)), int(max(steps))]
    draw = partial(_loss_plot, limits=limits, named=named, domain=domain)
    return arranged(named, frame, crossed, draw, heading)


def _loss_plot(
    frame: pd.DataFrame,
    ends: pd.DataFrame,
    width: float,
    apart: dict[str, Any],
    *,
    limits: Limits,
    named: Named,
    domain: list[int],
) -> Any:
    """The lines of one plot, with their bands and marks."""
    height = HEIGHT if named.rates is None else PANEL_HEIGHT
    x = theme.step_axis("step:Q", alt.Scale(nice=False, domain=domain))
    scale = alt.Scale(type="log" if limits.is_log else "linear", domain=[limits.low, limits.high], nice=True)
    ticks = theme.MOST_TICKS if named.rates is None else PANEL_TICKS
    axis = theme.log_axis([limits.low, limits.high], ticks) if limits.is_log else alt.Axis()
    y: dict[str, Any] = {"title": "training loss", "scale": scale, "axis": axis}
    tips = tooltips(named, "loss")
    tips += [alt.Tooltip("high_step:Q", title="at step", format=",")] if "high_step" in frame else []
    tips += [alt.Tooltip("seeds:Q")] if "seeds" in frame else []
    colour, layers = apart["color"], banded(frame, x, y, apart, tips)
    # A line through one point draws nothing.
    alone = frame[~frame.duplicated(["line", "piece"], keep=False) & limits.within(frame["value"])]
    if len(alone):
        point = alt.Chart(inline(alone)).mark_point(filled=True, size=40, opacity=1)
        layers.append(point.encode(x=x, y=alt.Y("line_at:Q", **y), color=colour, tooltip=tips))
    above = frame[np.isfinite(frame["high"]) & (frame["high"] > limits.high)]
    below = frame[frame["low"] < limits.low]
    layers += edge_marks(above, below, height, x, colour, tips)
    # In pixels, where 0 is the top edge: a loss that is not finite has no place on the scale.
    end_tips = [alt.Tooltip("run:N"), alt.Tooltip("step:Q", title="not finite at step", format=",")]
    layers += crosses(ends, x, 0, colour, end_tips)
    return alt.layer(*layers).properties(width=width, height=height)


def _loss_limits(
    named: Named, curves: Sequence[pd.DataFrame], starts: Sequence[float], ended: Set[int], *, is_log: bool
) -> Limits | None:
    """The limits of the axis: those of settings that diverged don't stretch it."""
    calm: list[NDArray[np.float64]] = []
    astray: list[NDArray[np.float64]] = []
    for setting, curve, start in zip(named.settings, curves, starts, strict=True):
        if len(curve):
            values = curve["value"].to_numpy(float)
            gone = all(id(run) in ended for run in setting.runs) or np.median(values) > ASTRAY * abs(start)
            (astray if gone else calm).append(np.append(values, start))
    return Limits.of(calm, astray, is_log=is_log)


def _no_loss(ends: Sequence[tuple[RunFacts, int]]) -> str:
    if ends:
        facts, step = ends[0]
        return f"no finite loss is on record, that of {facts.name} isn't at step {step:,}: train with a lower rate"
    return "no loss is on record: a loop of your own tells it by rec.log(loss=loss)"


def _not_finite(facts: RunFacts, part: pd.DataFrame) -> int | None:
    """The first step whose loss is not finite, by the run's finding or by its bins; None if all are."""
    # Only the finding tells of NaN, which no bin holds.
    found = [] if facts.bad_loss_step is None else [facts.bad_loss_step]
    found += part.loc[part["high"] == math.inf, "high_step"].astype(int).tolist()[:1]
    return min(found, default=None)


def accuracy_curves(runs: Sequence[Curve]) -> alt.LayerChart | alt.ConcatChart | alt.FacetChart:
    """Test accuracy by epoch, a line per setting: the mean over its seeds, and the lowest to the highest seed.

    Beyond `lines.MOST_LINES` lines there is a panel for each peak rate. A cross at the foot marks the epoch in which a
    run diverged.

    Args:
        runs: per run its facts and its table ``epochs`` (columns ``epoch``, from 0, and ``test_acc1``, in percent).

    Raises:
        NothingToShowError: no run has a test accuracy.
    """
    given = [
        (facts, pd.DataFrame({"epoch": epochs["epoch"] + 1, "value": epochs["test_acc1"]}).dropna(subset="value"))
        for facts, epochs in runs  # epochs from 1, as training shows them
    ]
    ends = [(facts, _last_epoch(facts, part)) for facts, part in given if facts.status == "diverged"]
    if not any(len(part) for _, part in given):
        raise NothingToShowError(
            "no test accuracy is on record: a loop of your own tells it by rec.log_epoch(epoch=0, test_acc1=...)"
        )
    shown = [(facts, part) for facts, part in given if len(part) or facts.status == "diverged"]
    named = Named.of(settings_of([facts for facts, _ in shown]))
    curves = [over_seeds(s, [shown[place][1] for place in s.places], "epoch") for s in named.settings]
    # Of too many lines `thinned` leaves the last ones out.
    few = thinned(curves, "value")
    frame = named.frame([*few, *(curve.head(0) for curve in curves[len(few) :])], "epoch")
    tops = [(float(part["value"].iloc[-1]), facts.name) for facts, part in shown if len(part)]
    top, name = max(tops, key=lambda one: one[0])
    seen = f"{name} ends {'' if len(tops) == 1 else 'highest, '}at {top:.2f} % test accuracy"
    what = ["after each epoch", *named.subtitle(geometric=False, one=""), *(["✕ diverged"] if ends else [])]
    heading = theme.title(seen, _subtitle(shown, "; ".join(text for text in what if text)))
    crossed = named.ends(ends[:MOST_ROWS], "epoch")
    return arranged(named, frame, crossed, partial(_accuracy_plot, named=named, every=frame), heading)


def _accuracy_plot(
    frame: pd.DataFrame,
    ends: pd.DataFrame,
    width: float,
    apart: dict[str, Any],
    *,
    named: Named,
    every: pd.DataFrame,
) -> Any:
    """The lines of one plot, with their bands and marks; ``every`` holds the rows of all plots."""
    height = HEIGHT if named.rates is None else PANEL_HEIGHT
    scales: dict[str, Any] = {}
    if named.rates is not None:  # all panels have the same axes
        scales = {
            "x": [int(every["epoch"].min()), int(every["epoch"].max())],
            "y": [every["low"].min(), every["high"].max()],
        }
    x = alt.X(
        "epoch:Q",
        scale=alt.Scale(nice=False, zero=False, **({"domain": scales["x"]} if scales else {})),
        axis=theme.whole_axis(),
    )
    y: dict[str, Any] = {
        "title": "test accuracy (%)",
        "scale": alt.Scale(zero=False, **({"domain": scales["y"]} if scales else {})),
    }
    tips = [
        alt.Tooltip("line:N", title=named.title),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("value:Q", title="test accuracy (%)", format=".2f"),
    ]
    if named.several:
        tips += [alt.Tooltip(f"{end}:Q", title=title, format=".2f") for end, title in _ENDS] + [alt.Tooltip("seeds:Q")]
    base = alt.Chart(inline(frame)).encode(x=x, detail=["line:N", "piece:N"], tooltip=tips)
    layers = [
        base.mark_line(strokeWidth=1.6).encode(y=alt.Y("value:Q", **y), **apart),
        base.mark_point(size=14, filled=True).encode(y=alt.Y("value:Q", **y), color=apart["color"]),
    ]
    if named.several:
        band = base.mark_area(opacity=0.18)
        layers.insert(0, band.encode(y=alt.Y("low:Q", **y), y2="high:Q", color=apart["color"]))
    layers += crosses(
        ends, x, height, apart["color"], [alt.Tooltip("run:N"), alt.Tooltip("epoch:Q", title="diverged in")]
    )
    return alt.layer(*layers).properties(width=width, height=height)


_ENDS = (("low", "lowest"), ("high", "highest"))


def _last_epoch(facts: RunFacts, part: pd.DataFrame) -> int:
    """The epoch in which a run diverged, from 1."""
    step, length = facts.bad_loss_step, facts.steps_per_epoch
    if step is not None and length:
        return (step - facts.first_step) // length + 1
    return int(part["epoch"].max()) + 1 if len(part) else 1


def _loss_title(runs: Sequence[Curve], ends: Sequence[tuple[RunFacts, int]]) -> str:
    if ends:
        facts, step = min(ends, key=lambda end: end[1])
        if len(ends) == 1:
            return f"The loss of {facts.name} is not finite at step {step:,}"
        return f"The losses of {len(ends):,} runs are not finite, first that of {facts.name} at step {step:,}"
    # Bins keep their highest value and its step, so that the title is of the data itself.
    risen = []
    for facts, part in runs:
        above = part[part["high"] > part["start"] + RISE * part["start"].abs()]
        if len(above):
            top = above.iloc[int(above["high"].to_numpy().argmax())]
            risen.append((float(top["high"]), int(top["high_step"]), facts.name))
    if not risen:
        return f"No loss rises more than {100 * RISE:.0f} % above its first value"
    high, step, name = max(risen, key=lambda top: top[0])
    return f"The loss of {name} peaks at {theme.number(high)}, at step {step:,}"


def _subtitle(runs: Sequence[Curve], what: str) -> str:
    facts = runs[0][0]
    return f"{f'{facts.name}: {facts.method}' if len(runs) == 1 else counted(len(runs), 'run')}; {what}"
