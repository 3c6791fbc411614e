"""Loss and accuracy over a run, several runs in one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, coarser, envelope, inline, pieces, thinned
from tvlars_probe.charts.limits import Limits, edge_marks, edge_words
from tvlars_probe.charts.runs_apart import labels, run_dash
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def loss_curves(runs: Sequence[Curve]) -> alt.LayerChart | alt.FacetChart:
    """Training loss by step: each bin's median as a line, its lowest to highest value as a band.

    A cross at the top marks the first step at which a run's loss is not finite. Runs that diverged don't stretch the
    axis: triangles mark the bins that reach beyond it.

    Args:
        runs: per run its facts and its losses as `loss_bins` gave them.

    Raises:
        NothingToShowError: no run has a finite loss.
    """
    # The runs share the rows of the chart.
    bins = max(min(MOST_BINS, MOST_ROWS // max(len(runs), 1)), 1)
    few = [coarser(part, bins) for _, part in runs[:MOST_ROWS]]
    frame = _joined([p.assign(**labels(f), piece=pieces(p["step"])) for (f, _), p in zip(runs, few, strict=False)])
    ends = [(facts, step) for facts, part in runs if (step := _not_finite(facts, part)) is not None]
    shown = [run for run in runs if len(run[1]) or any(facts is run[0] for facts, _ in ends)]
    limits = _loss_limits(runs, few)
    if limits is None:
        raise NothingToShowError(_no_loss(ends))
    drawn = {"line": "middle", "bottom": "low", "top": "high"}
    frame = frame.assign(**{name: limits.drawn(frame[column]) for name, column in drawn.items()})
    above = frame[np.isfinite(frame["high"]) & (frame["high"] > limits.high)]
    below = frame[frame["low"] < limits.low]
    what = ["median and range of each bin", *edge_words(above, below, is_log=limits.is_log)]
    heading = theme.title(_loss_title(frame, ends), _subtitle(shown, "; ".join(what)))
    x = theme.step_axis("step:Q", alt.Scale(nice=False))
    scale = alt.Scale(type="log" if limits.is_log else "linear", domain=[limits.low, limits.high], nice=True)
    axis = theme.log_axis([limits.low, limits.high]) if limits.is_log else alt.Axis()
    y: dict[str, Any] = {"title": "training loss", "scale": scale, "axis": axis}
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("middle:Q", title="loss", format=".4~g"),
        alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
        alt.Tooltip("high_step:Q", title="at step", format=","),
        alt.Tooltip("low:Q", title="lowest in the bin", format=".4~g"),
    ]
    colour, each = _colour(runs), ["run:N", "piece:N"]
    base = alt.Chart(inline(frame.drop(columns="start")))
    band = base.mark_area(opacity=0.18, clip=True).encode(
        x=x, y=alt.Y("bottom:Q", **y), y2="top:Q", color=colour, detail=each
    )
    line = base.mark_line(strokeWidth=1.6, clip=True).encode(
        x=x, y=alt.Y("line:Q", **y), color=colour, strokeDash=run_dash(frame), detail=each, tooltip=tips
    )
    layers = [band, line]
    # A line through one point draws nothing.
    alone = frame[~frame.duplicated(["run", "piece"], keep=False) & limits.within(frame["middle"])]
    if len(alone):
        point = alt.Chart(inline(alone.drop(columns="start"))).mark_point(filled=True, size=40, opacity=1)
        layers.append(point.encode(x=x, y=alt.Y("line:Q", **y), color=colour, tooltip=tips))
    layers += edge_marks(above, below, HEIGHT, x, colour, tips)
    if ends:
        layers.append(_crosses(ends, runs, x))
    return alt.layer(*layers).properties(width=theme.WIDTH, height=HEIGHT, title=heading)


def _loss_limits(runs: Sequence[Curve], few: Sequence[pd.DataFrame]) -> Limits | None:
    """The limits of the axis: logarithmic, unless losses are negative in more than a few bins of a run."""
    calm: list[NDArray[np.float64]] = []
    astray: list[NDArray[np.float64]] = []
    for (facts, _), part in zip(runs, few, strict=False):
        if len(part):
            middle, start = part["middle"].to_numpy(float), float(part["start"].iloc[0])
            gone = _not_finite(facts, part) is not None or np.median(middle) > ASTRAY * abs(start)
            (astray if gone else calm).append(np.append(middle, start))
    negative = any(len(part) and (part["low"] < 0).mean() > MOST_NEGATIVE for part in few)
    if not negative:
        limits = Limits.of(calm, astray)
        if limits is not None:
            return limits
    return Limits.of(calm, astray, is_log=False)


def _no_loss(ends: Sequence[tuple[RunFacts, int]]) -> str:
    if ends:
        facts, step = ends[0]
        return f"no finite loss is on record, that of {facts.name} isn't at step {step:,}: train with a lower rate"
    return "no loss is on record: a loop of your own tells it by rec.log(loss=loss)"


def _crosses(ends: Sequence[tuple[RunFacts, int]], runs: Sequence[Curve], x: alt.X) -> alt.Chart:
    """A cross at each run's first loss that is not finite."""
    rows = pd.DataFrame([{"step": step, **labels(facts)} for facts, step in ends[:MOST_ROWS]])
    tips = [alt.Tooltip("run:N"), alt.Tooltip("step:Q", title="not finite at step", format=",")]
    mark = alt.Chart(inline(rows)).mark_point(shape="cross", angle=45, filled=True, size=110, opacity=1)
    # In pixels, where 0 is the top edge: a loss that is not finite has no place on the scale.
    return mark.encode(x=x, y=alt.value(0), color=_colour(runs), tooltip=tips)


def _not_finite(facts: RunFacts, part: pd.DataFrame) -> int | None:
    """The first step whose loss is not finite, by the run's finding or by its bins; None if all are."""
    # Only the finding tells of NaN, which no bin holds.
    found = [] if facts.bad_loss_step is None else [facts.bad_loss_step]
    found += part.loc[part["high"] == math.inf, "high_step"].astype(int).tolist()[:1]
    return min(found, default=None)


def accuracy_curves(runs: Sequence[Curve]) -> alt.LayerChart:
    """Test accuracy by epoch.

    Args:
        runs: per run its facts and its table ``epochs`` (columns ``epoch``, from 0, and ``test_acc1``, in percent).

    Raises:
        NothingToShowError: no run has a test accuracy.
    """
    told = [epochs.dropna(subset="test_acc1")[["epoch", "test_acc1"]] for _, epochs in runs]
    shown = [run for run, part in zip(runs, told, strict=True) if len(part)]
    if not shown:
        raise NothingToShowError(
            "no test accuracy is on record: a loop of your own tells it by rec.log_epoch(epoch=0, test_acc1=...)"
        )
    few = thinned([part.assign(piece=pieces(part["epoch"])) for part in told if len(part)], "test_acc1")
    # Of too many runs `thinned` leaves the last ones out: ``few`` is shorter then.
    frame = _joined([part.assign(**labels(facts)) for (facts, _), part in zip(shown, few, strict=False)])
    frame["epoch"] += 1  # as training shows them
    last = frame.groupby("run", sort=False).tail(1)
    top = last.iloc[int(last["test_acc1"].to_numpy().argmax())]
    seen = f"{top['run']} ends {'' if len(last) == 1 else 'highest, '}at {top['test_acc1']:.2f} % test accuracy"
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("test_acc1:Q", title="test accuracy (%)", format=".2f"),
    ]
    base = alt.Chart(inline(frame)).encode(
        x=alt.X("epoch:Q", scale=alt.Scale(nice=False, zero=False), axis=theme.whole_axis()),
        y=alt.Y("test_acc1:Q", title="test accuracy (%)", scale=alt.Scale(zero=False)),
        color=_colour(shown),
        detail=["run:N", "piece:N"],
        tooltip=tips,
    )
    return (
        base.mark_line(strokeWidth=1.6).encode(strokeDash=run_dash(frame)) + base.mark_point(size=14, filled=True)
    ).properties(width=theme.WIDTH, height=HEIGHT, title=theme.title(seen, _subtitle(shown, "after each epoch")))


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    # The columns of an empty frame hold objects: joined with them, numbers would become objects, too.
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _colour(runs: Sequence[Curve]) -> alt.Color:
    scale = theme.optimizer_scale(facts.optimizer or "other" for facts, _ in runs)
    return alt.Color("optimizer:N", scale=scale, title="optimizer")


def _loss_title(frame: pd.DataFrame, ends: Sequence[tuple[RunFacts, int]]) -> str:
    if ends:
        facts, step = min(ends, key=lambda end: end[1])
        if len(ends) == 1:
            return f"The loss of {facts.name} is not finite at step {step:,}"
        return f"The losses of {len(ends):,} runs are not finite, first that of {facts.name} at step {step:,}"
    # Bins keep their highest value and its step, so that the title is of the data itself.
    risen = frame[frame["high"] > frame["start"] + RISE * frame["start"].abs()]
    if not len(risen):
        return f"No loss rises more than {100 * RISE:.0f} % above its first value"
    top = risen.iloc[int(risen["high"].to_numpy().argmax())]
    return f"The loss of {top['run']} peaks at {theme.number(top['high'])}, at step {top['high_step']:,}"


def _subtitle(runs: Sequence[Curve], what: str) -> str:
    facts = runs[0][0]
    return f"{f'{facts.name}: {facts.method}' if len(runs) == 1 else counted(len(runs), 'run')}; {what}"
