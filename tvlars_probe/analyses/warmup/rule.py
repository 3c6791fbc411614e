"""Was warm-up needed? The rule that answers from the features of one run.

First come runs that nothing can be asked of: a run that diverged, and one that never learned. For the others there is a
decision list; where none of its rules holds the answer is "can't tell". It was fitted on pairs of runs with warm-up and
without (`benchmarks/verdicts`), and how often its answers are right was counted on pairs of other data sets and models:
docs/evidence/verdicts.md.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tvlars_probe.analyses.chance import LEARNED
from tvlars_probe.analyses.verdict import CANT_TELL, Verdict
from tvlars_probe.analyses.warmup import model
from tvlars_probe.analyses.warmup.paired_gain import NEVER_LEARNED
from tvlars_probe.analyses.wording import counted, some_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.analyses.verdict import Figure
    from tvlars_probe.analyses.warmup.marks import WarmupMarks
    from tvlars_probe.analyses.warmup.model import Condition

QUESTION = "Was warm-up needed?"
DIVERGED = "diverged"

LEAST_STEPS = 20
"""Fewest recorded steps with which anything is said, except of a run that diverged."""

_REPLACED = ("--sd", "--warmup-epochs", "--run-dir", "--resume")
"""Options of a command line that the other side of a pair doesn't have, or has otherwise."""

LARS_WARM = "lars-warm"
"""The schedule with warm-up."""

GUESSING = 0.95
"""A late loss of at least this share of that of equal guesses is that of a run that never learned."""


def judge(marks: WarmupMarks, features: Sequence[Figure]) -> Verdict:
    """The answer for one run.

    - "diverged" where the loss stopped being finite, and "never learned" where the last accuracy, or else the late
      loss, is that of equal guesses. Of such a run nobody can say that warm-up made no difference.
    - Of a run without warm-up that learned: "needed" or "made no difference", by the list.
    - Of a run with warm-up: the same by another list, whose features a warm-up doesn't hide.
    - "can't tell" elsewhere, with what would tell.

    Args:
        marks: those of the run.
        features: those of `tvlars_probe.analyses.warmup.features`.
    """
    told = {f.name: f.value for f in features}
    side = "without" if marks.warmup_steps == 0 else "with"
    recorded, lost = marks.recorded_steps, _lost(marks, told)
    # Of a few steps nobody can say that they should have been enough to learn.
    if lost is not None and (lost.answer == DIVERGED or recorded >= LEAST_STEPS):
        return lost
    if recorded < LEAST_STEPS:
        if not recorded:
            return _cant_tell(marks, f"no layer was recorded (it takes {LEAST_STEPS} steps to say anything)")
        what = f"only {counted(recorded, 'step')} {'is' if recorded == 1 else 'are'} recorded"
        return _cant_tell(marks, f"{what} (it takes {LEAST_STEPS} to say anything)")
    if marks.warmup_steps is None:
        return _cant_tell(marks, "the trace ends before the learning rate reaches its peak")
    rules = model.fitted().rules[side]
    for rule in rules:
        if rule.holds(told):
            seen = " and ".join(_told(condition, told) for condition in rule.conditions)
            return Verdict(QUESTION, rule.answer, f"{seen}.", marks.figures, rule.reliability)
    read = dict.fromkeys(condition.feature for rule in rules for condition in rule.conditions)
    lacking = [_spaced(name) for name in read if told.get(name) is None]
    if lacking:
        return _cant_tell(marks, f"the trace doesn't hold {some_of(lacking)}", would_tell=True)
    if not read:
        return _cant_tell(marks, f"no rule answers for runs {side} warm-up", would_tell=True)
    seen = ", ".join(f"{_spaced(name)} {told[name]:.3g}" for name in read)
    return _cant_tell(marks, f"runs like it went either way ({seen})", would_tell=True)


def _told(condition: Condition, told: Mapping[str, float | None]) -> str:
    """A condition as it was met."""
    side = "at most" if condition.at_most else "at least"
    return f"{_spaced(condition.feature)} is {told[condition.feature]:.3g}, {side} {condition.line:.3g}"


def _lost(marks: WarmupMarks, told: Mapping[str, float | None]) -> Verdict | None:
    """The answer for a run that diverged or never learned; None for any other."""
    step, accuracy, loss = marks.early.bad_step, told["accuracy_above_chance"], told["late_loss_over_chance"]
    if step is not None and marks.recorded_steps:
        answer, why = DIVERGED, f"the loss was not finite at step {step}"
    elif accuracy is not None and accuracy < LEARNED:
        chance = 100 / (marks.facts.classes or 1)
        answer = NEVER_LEARNED
        reached = chance + accuracy * (100 - chance)
        why = f"its last test accuracy is {reached:.3g} %, and equal guesses have {chance:.3g} %"
    elif accuracy is None and loss is not None and loss >= GUESSING:
        answer, why = NEVER_LEARNED, f"its late loss is {loss:.3g} times that of equal guesses"
    else:
        return None
    if marks.warmup_steps != 0:
        return Verdict(QUESTION, answer, f"{why}, with warm-up: the rate is too high, or something else is wrong.",
                       marks.figures)  # fmt: skip
    rescued = model.fitted().dead[answer]
    reason = (
        f"{why}. Of {rescued.said} runs that ended so without warm-up, {rescued.right} did better with it at the same "
        "rate: lower the rate first."
    )
    return Verdict(QUESTION, answer, reason, marks.figures)


def _cant_tell(marks: WarmupMarks, why: str, *, would_tell: bool = False) -> Verdict:
    """No answer, for a reason; ``would_tell`` adds the command of the run that would tell."""
    other = "with" if marks.warmup_steps == 0 else "without"
    how = f". The same training {other} warm-up would tell" if would_tell else ""
    command = _other_side(marks) if would_tell else None
    return Verdict(QUESTION, CANT_TELL, why + how + (f": {command}" if command else "."), marks.figures)


def _other_side(marks: WarmupMarks) -> str | None:
    """The command line of the run on the other side of a pair; None for a loop that isn't the tool's own."""
    facts, (_, *words) = marks.facts, marks.facts.command or [""]
    if words[:1] != ["train"] or marks.peak_lr is None:
        return None
    other = ["--schedule", LARS_WARM]
    if facts.schedule != LARS_WARM:
        # lars-warm multiplies --lr; the peak must be the same.
        other += ["--peak-lr", str(marks.peak_lr)]  # to the last digit, or they are no pair
    if marks.warmup_steps != 0:
        other += ["--warmup-epochs", "0"]
    replaced = {*_REPLACED, *other[::2], *(["--lr"] if "--peak-lr" in other else [])}
    kept, skip = list[str](), False
    for word in words:
        name, has_value = word.split("=")[0], "=" in word
        if not skip and name not in replaced:
            kept.append(word)
        skip = not skip and name in replaced and not has_value
    return shlex.join(["tvlars-probe", *kept, *other])


def _spaced(name: str) -> str:
    return name.replace("_", " ")
