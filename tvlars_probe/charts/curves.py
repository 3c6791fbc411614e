"""Loss and accuracy over a run, several runs in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_ROWS, coarser, envelope, inline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.facts import RunFacts

MOST_BINS = 400


def loss_bins(steps: pd.DataFrame, bins: int = MOST_BINS) -> pd.DataFrame:
    """``steps`` (columns ``step``, ``loss``) in bins: what `loss_curves` takes, and all that need stay of a run."""
    told = steps.dropna(subset="loss")
    return envelope(told["step"].to_numpy(), told["loss"].to_numpy(float), bins)


def loss_curves(runs: Sequence[tuple[RunFacts, pd.DataFrame]]) -> alt.LayerChart:
    """Training loss by step, as `loss_bins` gave it: the median of each bin, and its lowest and highest value."""
    bins = max(min(MOST_BINS, MOST_ROWS // max(len(runs), 1)), 1)
    frames = [coarser(part, bins).assign(**_labels(facts)) for facts, part in runs[:MOST_ROWS]]
    frame = _joined(frames)
    seen = theme.title(_loss_title(frame), _subtitle(runs, "median and range of each bin"))
    base = alt.Chart(inline(frame))
    x = alt.X("step:Q", scale=alt.Scale(nice=False))
    scale = alt.Scale(type="log") if len(frame) and (frame["low"] > 0).all() else alt.Scale()
    axis = theme.log_axis(frame["low"].tolist() + frame["high"].tolist()) if scale.type == "log" else alt.Axis()
    y = alt.Y("middle:Q", title="training loss", scale=scale, axis=axis)
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("middle:Q", title="loss", format=".4~g"),
        alt.Tooltip("high:Q", title="highest in the bin", format=".4~g"),
    ]
    band = base.mark_area(opacity=0.18, clip=True).encode(
        x=x,
        y=alt.Y("low:Q", scale=scale, title="training loss"),
        y2="high:Q",
        color=_colour(runs),
        detail="run:N",
    )
    line = base.mark_line(strokeWidth=1.6, clip=True).encode(
        x=x, y=y, color=_colour(runs), strokeDash=schedule_dash(frame), detail="run:N", tooltip=tips
    )
    return (band + line).properties(width=theme.WIDTH, height=240, title=seen)


def accuracy_curves(runs: Sequence[tuple[RunFacts, pd.DataFrame]]) -> alt.LayerChart:
    """Test accuracy by epoch (columns ``epoch``, ``test_acc1``)."""
    frames = []
    for facts, epochs in runs:
        told = epochs.dropna(subset="test_acc1")[["epoch", "test_acc1"]]
        stride = -(-len(told) * len(runs) // MOST_ROWS) or 1
        kept = pd.concat([told.iloc[::stride], told.iloc[-1:]]).drop_duplicates("epoch")
        frames.append(kept.assign(**_labels(facts)))
    frame = _joined(frames)
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
        x=alt.X("epoch:Q", scale=alt.Scale(nice=False)),
        y=alt.Y("test_acc1:Q", title="test accuracy (%)", scale=alt.Scale(zero=False)),
        color=_colour(runs),
        detail="run:N",
        tooltip=tips,
    )
    return (
        base.mark_line(strokeWidth=1.6).encode(strokeDash=schedule_dash(frame)) + base.mark_point(size=14, filled=True)
    ).properties(width=theme.WIDTH, height=240, title=theme.title(seen, _subtitle(runs, "after each epoch")))


def _labels(facts: RunFacts) -> dict[str, str]:
    return {"run": facts.name, "optimizer": facts.optimizer or "other", "schedule": facts.schedule or "none"}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _colour(runs: Sequence[tuple[RunFacts, pd.DataFrame]]) -> alt.Color:
    scale = theme.optimizer_scale(facts.optimizer or "other" for facts, _ in runs)
    return alt.Color("optimizer:N", scale=scale, title="optimizer")


def schedule_dash(frame: pd.DataFrame) -> alt.StrokeDash:
    """A dash pattern per schedule, the same in every chart: runs of one optimizer share its colour."""
    schedules = list(dict.fromkeys(frame.get("schedule", [])))
    patterns = {"none": [1, 0], "lars-warm": [5, 3], "cosine": [2, 2]}
    scale = alt.Scale(domain=schedules, range=[patterns.get(name, [8, 3, 2, 3]) for name in schedules])
    return alt.StrokeDash("schedule:N", scale=scale, title="schedule")


def _loss_title(frame: pd.DataFrame) -> str:
    if not len(frame):
        return "No loss on record"
    top = frame.iloc[int(frame["high"].to_numpy().argmax())]
    first = frame[frame["run"] == top["run"]].iloc[0]
    if top["high"] > 1.05 * first["middle"]:
        return f"The loss of {top['run']} peaks at {theme.number(top['high'])}, near step {top['step']:,}"
    return "No loss rises above its first value"


def _subtitle(runs: Sequence[tuple[RunFacts, pd.DataFrame]], what: str) -> str:
    facts = runs[0][0]
    return f"{f'{facts.name}: {facts.method}' if len(runs) == 1 else f'{len(runs)} runs'}; {what}"
