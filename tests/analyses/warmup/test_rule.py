"""What the rule says of one run: dead runs first, then a decision list, and otherwise what would tell."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pytest

from tests.analyses.warmup.made_runs import FALLING, T, W, judged
from tvlars_probe.analyses.verdict import Reliability
from tvlars_probe.analyses.warmup import model
from tvlars_probe.analyses.warmup.model import Condition, Fitted, FittedRule
from tvlars_probe.analyses.warmup.rule import LEAST_STEPS

STEADY = {"a.weight": np.full(T, 4.0)}
SET_BACK = np.where(np.arange(T) == 7, 3.0, FALLING)


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of two rules for runs without warm-up, of one for runs with it."""
    setback, late = Condition("early_setback", 0.05, at_most=True), Condition("late_loss", 0.3, at_most=True)
    calm = FittedRule("made no difference", (setback, late), Reliability.of(47, 50))
    rising = FittedRule("needed", (Condition("early_setback", 1.0, at_most=False),), Reliability.of(9, 10))
    small = FittedRule("made no difference", (Condition("setback", 0.05, at_most=True),), Reliability.of(3, 3))
    dead = {"diverged": Reliability.of(2, 9), "never learned": Reliability.of(0, 7)}
    found = Fitted(rules={"without": (calm, rising), "with": (small,)}, dead=dead)
    monkeypatch.setattr(model, "fitted", lambda: found)


def test_a_run_whose_conditions_hold_has_the_answer_its_reason_and_its_reliability() -> None:
    verdict = judged(STEADY, warmup=0).verdict
    assert verdict.answer == "made no difference"
    assert verdict.reason.startswith("early setback is ")
    assert "at most 0.05 and late loss is 0." in verdict.reason
    assert verdict.reliability is not None
    assert (verdict.reliability.right, verdict.reliability.said) == (47, 50)
    assert verdict.reliability.text == "right in 47 of 50 like it (84 to 98 %)"


def test_the_first_rule_that_holds_answers() -> None:
    rising = FALLING.copy()
    rising[5:9] = 7.0
    assert judged(STEADY, warmup=0, loss=rising).verdict.answer == "needed"
    rising[5:9] = 3.0  # a setback of less than the first loss: neither rule holds
    verdict = judged(STEADY, warmup=0, loss=rising).verdict
    assert (verdict.answer, verdict.reliability) == ("can't tell", None)
    assert "runs like it went either way (early setback 0." in verdict.reason
    assert "The same training with warm-up would tell." in verdict.reason


def test_runs_with_warm_up_have_a_list_of_their_own() -> None:
    assert judged(STEADY).verdict.answer == "made no difference"
    assert judged(STEADY, loss=SET_BACK).verdict.answer == "can't tell"


def trained(command: str, **facts: Any) -> str:
    """The reason of a run that a command line made, whose answer is open."""
    told = {"command": shlex.split(command), "batch_size": 512, "peak_lr": 1.0, **facts}
    return judged(STEADY, loss=SET_BACK, **told).verdict.reason


def test_the_command_that_would_tell_is_typed_out() -> None:
    line = "/bin/tvlars-probe train --opt lars --sd lars-warm --lr 0.5 --warmup-epochs 4 --run-dir runs/a --bs 512"
    assert trained(line, schedule="lars-warm").endswith(
        "without warm-up would tell: tvlars-probe train --opt lars --lr 0.5 --bs 512 --schedule lars-warm "
        "--warmup-epochs 0"
    )
    # Another schedule reaches --lr itself, lars-warm twice as much at batch 512: the peak is given instead.
    for rate in ("--lr 1", "--peak-lr=1"):
        other = trained(f"python train {rate} --schedule=cosine --run-dir=runs/a b", schedule="cosine")
        assert other.endswith(": tvlars-probe train b --schedule lars-warm --peak-lr 1.0 --warmup-epochs 0")


def test_a_loop_of_ones_own_gets_no_command() -> None:
    assert trained("loop.py --lr 1").endswith("would tell.")


@pytest.mark.parametrize("warmup", [0, W])
def test_a_run_that_never_learned_is_told_with_chance(warmup: int) -> None:
    verdict = judged(STEADY, warmup=warmup, accuracy=12.0, classes=10).verdict
    assert verdict.answer == "never learned"
    assert "its last test accuracy is 12 %, and equal guesses have 10 %" in verdict.reason
    flat = np.full(T, np.log(10.0))
    assert judged(STEADY, warmup=warmup, loss=flat, classes=10).verdict.answer == "never learned"
    assert judged(STEADY, warmup=warmup, loss=flat, classes=10, accuracy=50.0).verdict.answer != "never learned"


def test_a_few_steps_are_too_few_to_have_learned() -> None:
    few = {"a.weight": np.full(LEAST_STEPS - 1, 4.0)}
    loss = np.full(LEAST_STEPS - 1, np.log(10.0))
    verdict = judged(few, warmup=0, loss=loss, accuracy=10.0, classes=10).verdict
    assert verdict.answer == "can't tell"
    assert "only 19 steps are recorded" in verdict.reason


def test_what_warm_up_did_for_other_dead_runs_is_told() -> None:
    lost = np.where(np.arange(T) < 40, 2.0, np.inf)
    verdict = judged(STEADY, warmup=0, loss=lost).verdict
    assert verdict.answer == "diverged"
    assert "Of 9 runs that ended so without warm-up, 2 did better with it at the same rate" in verdict.reason
    assert "Of 9 runs" not in judged(STEADY, loss=lost).verdict.reason


def test_conditions_hold_on_their_side_of_the_line_and_nothing_holds_for_what_is_unknown() -> None:
    rule = FittedRule("needed", (Condition("x", 2.0, at_most=True), Condition("y", 1.0, at_most=False)),
                      Reliability.of(0, 0))  # fmt: skip
    assert rule.holds({"x": 2.0, "y": 1.0})
    assert not rule.holds({"x": 2.1, "y": 1.0})
    assert not rule.holds({"x": 2.0, "y": 0.9})
    assert not rule.holds({"x": None, "y": 1.0})
    assert not rule.holds({"y": 1.0})
    assert not rule.holds({"x": float("nan"), "y": 1.0})
    assert rule.holds({"x": -float("inf"), "y": float("inf")})
