"""The rule by which a trace's marks become a verdict on warm-up."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "Was warm-up needed?"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the rule draws its lines. None of them is from a paper; each can be set.

    Attributes:
        explosion: times its later median (or its start, if that is higher) that a quantity must reach to explode.
        hot: times its settled own ratio beyond which a layer is hot.
        overwrite: full-rate ‖Δw‖/‖w‖ beyond which an unadapted tensor is overwritten.
        early_epochs: epochs that count as early, unless the warm-up is longer. It is no share of the run: what happened
            early doesn't depend on how long a run goes on.
        early_updates: the same in updates, where a run doesn't tell its epochs.
        settled: share of the recorded steps after which a run counts as settled.
        redundant: share of held-back cells that must be redundant for "not needed".
        layers: share of the layers that must be hot or explode to matter.
        persistent: share of the early steps in which a tensor must be overwritten to matter.
        loss_rise: times its first value that the early loss must reach to count as harmed.
        least_steps: recorded steps below which nothing is said.
    """

    explosion: float = 5.0
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
        """Updates that count as early."""
        per_epoch = facts.steps_per_epoch
        return math.ceil(self.early_epochs * per_epoch) if per_epoch else self.early_updates


@dataclass(frozen=True, kw_only=True)
class EarlyLoss:
    """How the loss did in the early steps.

    Attributes:
        rise: its highest early value over its first; infinite where it was not finite.
        peak_step: where.
        bad_step: first step whose loss was not finite, at any time; None if all were.
        recovered_after: steps until it was first below its first value again; None if it never rose, or never was.
    """

    rise: float | None
    peak_step: int | None
    bad_step: int | None
    recovered_after: int | None


def early_loss(steps: pd.DataFrame, facts: RunFacts, thresholds: Thresholds) -> EarlyLoss:
    """Read `EarlyLoss` off the table ``steps`` (columns ``step`` and ``loss``)."""
    told = steps[steps["loss"].notna() | steps["loss"].isin([np.inf])]
    loss, at = told["loss"].to_numpy(float), told["step"].to_numpy()
    bad = at[~np.isfinite(loss)]
    bad_step = int(bad[0]) if len(bad) else (facts.finding or {}).get("step")
    if not len(loss):
        return EarlyLoss(rise=None, peak_step=None, bad_step=bad_step, recovered_after=None)
    early = loss[at - at[0] < thresholds.early(facts)]
    peak = int(np.argmax(np.nan_to_num(early, nan=np.inf)))
    back = np.flatnonzero(loss[peak:] < loss[0])
    harmed = loss[peak] > loss[0]
    return EarlyLoss(
        rise=float(loss[peak] / loss[0]) if loss[0] else None,
        peak_step=int(at[peak]),
        bad_step=bad_step,
        recovered_after=int(at[peak + back[0]] - at[0]) if harmed and len(back) else None,
    )


def judge(
    *,
    facts: RunFacts,
    thresholds: Thresholds,
    recorded: int,
    warmup_steps: int | None,
    layers: pd.DataFrame,
    explosions: pd.DataFrame,
    early: EarlyLoss,
    suggested: int | None,
    early_rows: int,
    last_early: int,
) -> Verdict:
    """Apply the rule.

    Nothing is said of a trace that is too short, has no layers, or ends within the warm-up. A run *without* warm-up
    answers by its loss: harmed early, needed; unharmed and no early gradient explosion, not needed. A run *with*
    warm-up shows what full rate would have met, but not what that would have done: without hot layers and overwritten
    tensors, and with the scaling redundant, not needed. Else it can't be told from this trace: runs without warm-up
    are seen to do well with either mark.
    """
    t = thresholds
    marks = _Marks.of(layers, explosions, t, last_early, early_rows)
    figures = _figures(marks, early, warmup_steps, suggested)

    def say(answer: str, reason: str, lead: str = "loss_rise") -> Verdict:
        ordered = sorted(figures, key=lambda figure: figure.name != lead)
        return Verdict(QUESTION, answer, reason, tuple(ordered))

    soon = early.bad_step is not None and early.bad_step <= last_early
    how = _how_harmed(early)
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
    hot_share: float
    overwritten: int
    unadapted: int
    gradient_share: float
    ratio_share: float
    redundant: float | None
    excluded_step: float | None
    adapted_step: float | None

    @classmethod
    def of(
        cls, layers: pd.DataFrame, explosions: pd.DataFrame, t: Thresholds, last_early: int, early_rows: int
    ) -> _Marks:
        adapted, rest = layers[layers["adapted"]], layers[~layers["adapted"]]
        long_enough = max(t.persistent * early_rows, 1)
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
        """Whether full rate would meet hot layers or overwrite tensors."""
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
