"""The rule by which a trace's marks become a verdict on warm-up."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.course import lost_at
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "Was warm-up needed?"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the rule. None of them is from a paper; each can be set.

    Attributes:
        explosion: a quantity explodes above this multiple of its usual level; see `tvlars_probe.analyses.explosions`.
        explosion_rise: an explosion of ‖w‖/‖g‖ counts where ‖g‖ or ‖Δw‖/‖w‖ rises above this multiple of its own.
        hot: a layer is hot if its own ratio is above this multiple of its settled value.
        overwrite: an unadapted tensor is overwritten if one step at full rate has a ‖Δw‖/‖w‖ above this.
        early_epochs: number of first epochs that count as early. It is no share of the run: what happened early doesn't
            depend on how long a run goes on. All of a longer warm-up counts as early, except for the rise of the loss.
        early_updates: the same in updates, for a run that doesn't tell its updates per epoch.
        settled: share of the recorded updates after which a run counts as settled.
        redundant: share of the held-back cells (an update and an adapted layer each) that must be redundant for the
            answer "not needed".
        layers: share of the layers that must be hot, or of the tensors whose gradient must explode, to matter.
        persistent: share of the early updates in which a tensor must be overwritten to matter.
        loss_rise: the run counts as harmed if the early loss reaches this multiple of its first value.
        least_steps: fewest recorded steps with which anything is said, except of a run without warm-up that soon
            diverged.

    Raises:
        UserError: a threshold is outside its range.
    """

    explosion: float = 5.0
    explosion_rise: float = 2.0
    hot: float = 2.0
    overwrite: float = 1.0
    early_epochs: float = 5.0
    early_updates: int = 500
    settled: float = 0.5
    redundant: float = 0.8
    layers: float = 0.1
    persistent: float = 0.05
    loss_rise: float = 1.5
    least_steps: int = 20

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, is_share = getattr(self, f.name), f.name in ("settled", "redundant", "layers", "persistent")
            if not 0 < value < math.inf or (is_share and value > 1):
                allowed = "above 0, at most 1" if is_share else "above 0"
                raise UserError(f"--{f.name.replace('_', '-')} {value:g} is out of range (allowed: {allowed})")

    def early(self, facts: RunFacts) -> int:
        """Number of first updates that count as early."""
        per_epoch = facts.steps_per_epoch
        return math.ceil(self.early_epochs * per_epoch) if per_epoch else self.early_updates


@dataclass(frozen=True, kw_only=True)
class EarlyLoss:
    """How the loss did in the early steps.

    Attributes:
        rise: the highest early loss over the first one; infinite where it was infinite, None where no loss is recorded.
        peak_step: the step of that highest loss.
        bad_step: the first step whose loss was not finite, early or late; None if all were finite.
        recovered_after: updates until the loss was first below its first value again, after its highest; None if it
            never rose above that value, or never fell below it again.
    """

    rise: float | None
    peak_step: int | None
    bad_step: int | None
    recovered_after: int | None


def early_loss(steps: pd.DataFrame, facts: RunFacts, thresholds: Thresholds) -> EarlyLoss:
    """Read `EarlyLoss` off the table ``steps`` (columns ``step`` and ``loss``); updates count from its first row."""
    # pandas reads null, where no loss was logged, as NaN: in the table a loss that is NaN can't be told from that.
    told = steps[steps["loss"].notna() | steps["loss"].isin([np.inf])]
    loss, at = told["loss"].to_numpy(float), told["step"].to_numpy()
    bad = [*at[~np.isfinite(loss)][:1].tolist(), lost_at(steps, facts)]
    bad_step = min((step for step in bad if step is not None), default=None)
    if not len(loss):
        return EarlyLoss(rise=None, peak_step=None, bad_step=bad_step, recovered_after=None)
    first = int(steps["step"].iloc[0])
    early = loss[at - first < thresholds.early(facts)]
    peak = int(np.argmax(np.nan_to_num(early, nan=np.inf)))
    back = np.flatnonzero(loss[peak:] < loss[0])
    harmed = loss[peak] > loss[0]
    return EarlyLoss(
        # Infinity over itself, where the first loss was infinite, is none.
        rise=math.inf if np.isinf(loss[peak]) else float(loss[peak] / loss[0]) if loss[0] else None,
        peak_step=int(at[peak]),
        bad_step=bad_step,
        recovered_after=int(at[peak + back[0]] - first) if harmed and len(back) else None,
    )


def judge(
    *,
    thresholds: Thresholds,
    recorded: int,
    warmup_steps: int | None,
    layers: pd.DataFrame,
    explosions: pd.DataFrame,
    early: EarlyLoss,
    suggested: int | None,
    last_early: int,
) -> Verdict:
    """Apply the rule.

    A run *without* warm-up answers by its loss. Warm-up was needed if the early loss rose too far or stopped being
    finite. It was not needed if the loss did neither and few gradients exploded early.

    A run *with* warm-up shows what full rate would have met, but not what that would have done. Warm-up was not needed
    if few layers are hot, no tensor is overwritten, and the scaling was redundant.

    Everything else can't be told from the trace: runs without warm-up are seen to do well with hot layers and with
    overwritten tensors. A trace that is too short, has no layers, or ends within the warm-up can't tell either, nor can
    one whose loss stopped being finite only long after the early steps.

    Args:
        thresholds: thresholds of the rule.
        recorded: number of recorded steps of the layers.
        warmup_steps: length of the warm-up in updates; None where the trace ends within it.
        layers: the table `tvlars_probe.analyses.warmup.Warmup.layers`.
        explosions: the table `tvlars_probe.analyses.warmup.Warmup.explosions`.
        early: what the loss did in the early steps.
        suggested: suggested length of warm-up in updates, for the figures.
        last_early: the last step that counts as early.
    """
    t = thresholds
    marks = _Marks.of(layers, explosions, t, last_early)
    figures = _figures(marks, early, warmup_steps, suggested)

    # The figure that decided goes first: it is shown beside the answer.
    def say(answer: str, reason: str, lead: str = "loss_rise") -> Verdict:
        ordered = sorted(figures, key=lambda figure: figure.name != lead)
        return Verdict(QUESTION, answer, reason, tuple(ordered))

    soon = early.bad_step is not None and early.bad_step <= last_early
    how = _how_harmed(early)
    # A run that diverges at once is short for that reason: this is judged before its length.
    if recorded and soon and warmup_steps == 0:
        return say("needed", f"without warm-up {how}; {marks.text}.")
    if recorded < t.least_steps:
        what = "no layer was recorded" if not recorded else f"only {recorded} steps are recorded"
        return say(CANT_TELL, f"{what} (it takes {t.least_steps} to say anything).")
    if warmup_steps is None:
        return say(CANT_TELL, "the trace ends before the learning rate reaches its peak.")
    if early.bad_step is not None and not soon:
        return say(CANT_TELL, f"the loss was not finite from step {early.bad_step} on, long after the early steps.")
    harmed = soon or (early.rise is not None and early.rise >= t.loss_rise)
    if warmup_steps == 0:
        if harmed:
            return say("needed", f"without warm-up {how}; {marks.text}.")
        if early.rise is None:
            return say(CANT_TELL, "no loss was recorded, by which a run without warm-up answers.")
        if marks.gradient_share >= t.layers:
            return say(
                CANT_TELL,
                f"without warm-up the gradient exploded early in {marks.gradient_share:.0%} of the tensors, but the "
                f"loss stayed below {t.loss_rise:g} times its first value: compare it with a run that has warm-up.",
            )
        return say("not needed", f"without warm-up {how}{', although ' if marks.any(t) else '; '}{marks.text}.")
    if harmed:
        return say(CANT_TELL, f"even with warm-up {how}: the trace doesn't show what full rate would have done.")
    if marks.any(t):
        return say(
            CANT_TELL,
            f"at full rate {marks.text}: whether that harms, a run without warm-up at this peak rate would tell.",
            "unadapted_step" if marks.overwritten else "hot_share",
        )
    if marks.redundant is None:
        return say(CANT_TELL, "no layer has a trust ratio of its own, and a warm-up hides what full rate would do.")
    if marks.redundant >= t.redundant:
        return say(
            "not needed",
            f"in {marks.redundant:.0%} of the warm-up's steps and layers the schedule held back a layer whose own "
            f"ratio was already below what it settles at; {marks.text}.",
            "redundant_share",
        )
    return say(
        CANT_TELL,
        f"the scaling was redundant in {marks.redundant:.0%} of the warm-up's steps and layers, less than the "
        f"{t.redundant:.0%} that would settle it, and {marks.text}.",
        "redundant_share",
    )


@dataclass(frozen=True)
class _Marks:
    """What the rule counts in the tables of layers and explosions.

    Attributes:
        hot_share: share of the adapted layers that are hot in any early step.
        overwritten: number of unadapted tensors that are overwritten in enough early steps to matter.
        unadapted: number of unadapted tensors.
        gradient_share: share of all tensors whose gradient norm explodes early.
        ratio_share: share of all tensors whose ‖w‖/‖g‖ explodes early.
        redundant: share of the held-back cells that are redundant; None where no adapted layer is held back.
        excluded_step: ‖Δw‖/‖w‖ of a step at full rate, median over the unadapted tensors.
        adapted_step: the same over the adapted ones.
    """

    hot_share: float
    overwritten: int
    unadapted: int
    gradient_share: float
    ratio_share: float
    redundant: float | None
    excluded_step: float | None
    adapted_step: float | None

    @classmethod
    def of(cls, layers: pd.DataFrame, explosions: pd.DataFrame, t: Thresholds, last_early: int) -> _Marks:
        adapted, rest = layers[layers["adapted"]], layers[~layers["adapted"]]
        # A tensor must be overwritten in more updates than this, so that one recorded step never matters, however short
        # the run, and however many updates the step stands for.
        long_enough = (t.persistent * rest["early_steps"]).clip(lower=rest["longest_span"].clip(lower=1))
        cells = adapted["held_back_steps"].sum()
        soon = explosions[explosions["exploded"] & (explosions["first_step"] <= last_early)]
        count = max(len(layers), 1)
        return cls(
            hot_share=float((adapted["hot_steps"] > 0).mean()) if len(adapted) else 0.0,
            overwritten=int((rest["overwritten_steps"] > long_enough).sum()),
            unadapted=len(rest),
            gradient_share=float((soon["quantity"] == "grad_norm").sum() / count),
            ratio_share=float((soon["quantity"] == "lnr").sum() / count),
            redundant=float(adapted["redundant_steps"].sum() / cells) if cells else None,
            excluded_step=_median(rest["full_rate_step"]),
            adapted_step=_median(adapted["full_rate_step"]),
        )

    def any(self, t: Thresholds) -> bool:
        """Whether full rate would meet enough hot layers to matter, or overwrite a tensor."""
        return self.hot_share >= t.layers or self.overwritten > 0

    @property
    def text(self) -> str:
        """Hot layers and overwritten tensors in words."""
        hot = f"{self.hot_share:.0%} of the adapted layers are hot" if self.hot_share else "no adapted layer is hot"
        if not self.unadapted:
            return hot
        if not self.overwritten:
            return f"{hot} and no unadapted tensor is overwritten"
        return f"{hot} and {self.overwritten} of {self.unadapted} unadapted tensors are overwritten in single steps"


def _how_harmed(early: EarlyLoss) -> str:
    """What the early loss did, in words."""
    if early.bad_step is not None:
        return f"the loss was not finite at step {early.bad_step}"
    if early.rise is None:
        return "no loss was recorded"
    if early.rise <= 1:
        return "the loss never rose above its first value early on"
    return f"the loss rose to {early.rise:.3g} times its first value at step {early.peak_step}"


def _median(values: pd.Series[float]) -> float | None:
    return float(values.median()) if values.notna().any() else None


def _figures(marks: _Marks, early: EarlyLoss, warmup_steps: int | None, suggested: int | None) -> tuple[Figure, ...]:
    return (
        Figure("loss_rise", early.rise, "1", "highest early loss over the first one"),
        Figure(
            "redundant_share",
            marks.redundant,
            "share",
            "warm-up steps and adapted layers in which the schedule held back a layer already below its settled ratio",
        ),
        Figure("warmup_steps", warmup_steps, "step", "steps before the learning rate reached its peak"),
        Figure("suggested_steps", suggested, "step", "length that covers hot layers and overwritten tensors"),
        Figure("hot_share", marks.hot_share, "share", "adapted layers whose own early ratio is beyond the hot line"),
        Figure("overwritten", marks.overwritten, "1", "unadapted tensors that a full-rate step overwrites"),
        Figure(
            "unadapted_step",
            marks.excluded_step,
            "1",
            "‖Δw‖/‖w‖ of a full-rate step, median over the unadapted tensors",
        ),
        Figure("adapted_step", marks.adapted_step, "1", "the same for the adapted ones"),
        Figure("lnr_explosions", marks.ratio_share, "share", "tensors whose ‖w‖/‖g‖ explodes early"),
        Figure("gradient_explosions", marks.gradient_share, "share", "tensors whose gradient norm explodes early"),
    )
