"""Loss and accuracy over a run, several runs in one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, coarser, envelope, inline, thinned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.facts import RunFacts

    Curve = tuple[RunFacts, pd.DataFrame]

MOST_BINS = 400
"""Most bins of one run's loss."""

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


def loss_curves(runs: Sequence[Curve]) -> alt.LayerChart:
    """Training loss by step: each bin's median as a line, its lowest to highest value as a band.

    A cross at the top marks the first step at which a run's loss is not finite.

    Args:
        runs: per run its facts and its losses as `loss_bins` gave them.
    """
    # The runs share the rows of the chart.
    bins = max(min(MOST_BINS, MOST_ROWS // max(len(runs), 1)), 1)
    frames = [coarser(part, bins).assign(**_labels(facts)) for facts, part in runs[:MOST_ROWS]]
    frame = _joined(frames)
    ends = [(facts, step) for facts, part in runs if (step := _not_finite(facts, part)) is not None]
    seen = theme.title(_loss_title(frame, ends), _subtitle(runs, "median and range of each bin"))
    base = alt.Chart(inline(frame.drop(columns="start")))
    x = alt.X("step:Q", scale=alt.Scale(nice=False))
    # A logarithmic axis has no place for a loss of zero or below.
    scale = alt.Scale(type="log") if len(frame) and (frame["low"] > 0).all() else alt.Scale()
    axis = theme.log_axis(frame["low"].tolist() + frame["high"].tolist()) if scale.type == "log" else alt.Axis()
    y = alt.Y("middle:Q", title="training loss", scale=scale, axis=axis)
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("middle:Q", title="loss", format=".4~g"),
        alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
        alt.Tooltip("high_step:Q", title="at step", format=","),
    ]
    band = base.mark_area(opacity=0.18, clip=True).encode(
        x=x,
        y=alt.Y("low:Q", scale=scale, title="training loss"),
        y2="high:Q",
        color=_colour(runs),
        detail="run:N",
    )
    line = base.mark_line(strokeWidth=1.6, clip=True).encode(
        x=x, y=y, color=_colour(runs), strokeDash=run_dash(frame), detail="run:N", tooltip=tips
    )
    chart = band + line
    alone = frame[~frame["run"].duplicated(keep=False)].drop(columns="start") if len(frame) else frame
    if len(alone):  # a line through one point draws nothing
        point = alt.Chart(inline(alone)).mark_point(filled=True, size=40, opacity=1)
        chart += point.encode(x=x, y=y, color=_colour(runs), tooltip=tips)
    if ends:
        chart += _crosses(ends, runs, x)
    return chart.properties(width=theme.WIDTH, height=240, title=seen)


def _crosses(ends: Sequence[tuple[RunFacts, int]], runs: Sequence[Curve], x: alt.X) -> alt.Chart:
    """A cross at each run's first loss that is not finite."""
    rows = pd.DataFrame([{"step": step, **_labels(facts)} for facts, step in ends[:MOST_ROWS]])
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
    """
    told = [epochs.dropna(subset="test_acc1")[["epoch", "test_acc1"]] for _, epochs in runs]
    few = thinned(told, "test_acc1")
    # Of too many runs `thinned` leaves the last ones out: ``few`` is shorter then.
    frame = _joined([part.assign(**_labels(facts)) for (facts, _), part in zip(runs, few, strict=False)])
    frame["epoch"] += 1  # as training shows them
    seen = "No test accuracy on record"
    if len(frame):
        last = frame.groupby("run", sort=False).tail(1)
        top = last.iloc[int(last["test_acc1"].to_numpy().argmax())]
        seen = f"{top['run']} ends highest, at {top['test_acc1']:.2f} % test accuracy"
        if len(last) == 1:
            seen = f"{top['run']} ends at {top['test_acc1']:.2f} % test accuracy"
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("test_acc1:Q", title="test accuracy (%)", format=".2f"),
    ]
    base = alt.Chart(inline(frame)).encode(
        x=alt.X("epoch:Q", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(tickMinStep=1, format=",d")),
        y=alt.Y("test_acc1:Q", title="test accuracy (%)", scale=alt.Scale(zero=False)),
        color=_colour(runs),
        detail="run:N",
        tooltip=tips,
    )
    return (
        base.mark_line(strokeWidth=1.6).encode(strokeDash=run_dash(frame)) + base.mark_point(size=14, filled=True)
    ).properties(width=theme.WIDTH, height=240, title=theme.title(seen, _subtitle(runs, "after each epoch")))


def _labels(facts: RunFacts) -> dict[str, str]:
    return {"run": facts.name, "optimizer": facts.optimizer or "other", "schedule": facts.schedule or "none"}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    # The columns of an empty frame hold objects: joined with them, numbers would become objects, too.
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _colour(runs: Sequence[Curve]) -> alt.Color:
    scale = theme.optimizer_scale(facts.optimizer or "other" for facts, _ in runs)
    return alt.Color("optimizer:N", scale=scale, title="optimizer")


_SCHEDULE_DASHES = {"none": [1, 0], "lars-warm": [5, 3], "cosine": [2, 2]}
_RUN_DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 1], [1, 4], [9, 2, 2, 2, 2, 2]]
"""Lengths of strokes and gaps in turn; [1, 0] is a plain line."""


def run_dash(frame: pd.DataFrame) -> alt.StrokeDash:
    """Dash patterns, which tell apart the runs that share an optimizer's colour.

    Each schedule has the same pattern in every chart. Where runs share their schedule as well, each run of a colour has
    its own pattern instead, as long as there are enough.

    Args:
        frame: columns ``run``, ``optimizer`` and ``schedule``.
    """
    runs = frame.reindex(columns=["run", "optimizer", "schedule"]).drop_duplicates("run")
    place = runs.groupby("optimizer").cumcount()
    if runs.duplicated(["optimizer", "schedule"]).any() and place.max() < len(_RUN_DASHES):
        scale = alt.Scale(domain=runs["run"].tolist(), range=[_RUN_DASHES[k] for k in place])
        return alt.StrokeDash("run:N", scale=scale, title="run", legend=alt.Legend(columns=3, symbolSize=400))
    schedules = runs["schedule"].drop_duplicates().tolist()
    scale = alt.Scale(domain=schedules, range=[_SCHEDULE_DASHES.get(name, [8, 3, 2, 3]) for name in schedules])
    return alt.StrokeDash("schedule:N", scale=scale, title="schedule")


def _loss_title(frame: pd.DataFrame, ends: Sequence[tuple[RunFacts, int]]) -> str:
    if ends:
        facts, step = min(ends, key=lambda end: end[1])
        if len(ends) == 1:
            return f"The loss of {facts.name} is not finite at step {step:,}"
        return f"The losses of {len(ends):,} runs are not finite, first that of {facts.name} at step {step:,}"
    if not len(frame):
        return "No loss on record"
    # Bins keep their highest value and its step, so that the title is of the data itself.
    risen = frame[frame["high"] > frame["start"] + RISE * frame["start"].abs()]
    if not len(risen):
        return f"No loss rises more than {100 * RISE:.0f} % above its first value"
    top = risen.iloc[int(risen["high"].to_numpy().argmax())]
    return f"The loss of {top['run']} peaks at {theme.number(top['high'])}, at step {top['high_step']:,}"


def _subtitle(runs: Sequence[Curve], what: str) -> str:
    facts = runs[0][0]
    return f"{f'{facts.name}: {facts.method}' if len(runs) == 1 else f'{len(runs):,} runs'}; {what}"
