"""Batch sharpness beside 2/rate, on rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.test_minimizer import NO_SPECTRUM, STEPS, rows
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.minimizer import Minimizer, SharpnessRule, analyse_minimizer
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.description_words import Momentum, Preconditioner, Scaling
from tvlars_probe.optimizers.group_description import GroupDescription

LIMIT = 20.0
"""2/rate at the rate 0.1."""

SGD = GroupDescription(optimizer="SGD")
RATES = pd.DataFrame({"step": np.arange(101), "lr": 0.1})


def batch_rows(values: Any, *, batch_size: int = 32, **further: Any) -> pd.DataFrame:
    told = {"measure": "batch_sharpness", "rank": np.nan, "error": 0.4, "converged": None, **further}
    return rows("hessian", values, **told).assign(batch_size=batch_size)


def analysed(
    *frames: pd.DataFrame, group: GroupDescription | None = SGD, rates: Any = RATES, **facts: Any
) -> Minimizer:
    groups = [{"optimizer": group.optimizer, "description": group.as_dict()}] if group is not None else []
    told = RunFacts(name="made", batch_size=32, groups=groups)
    return analyse_minimizer(pd.concat(frames, ignore_index=True), NO_SPECTRUM, told, rates=rates)


RISING = np.interp(STEPS, [0, 60, 100], [2, LIMIT, LIMIT])


def test_batch_sharpness_that_settles_at_the_limit_is_at_the_edge_whatever_the_eigenvalue() -> None:
    result = analysed(batch_rows(RISING), rows("hessian", RISING / 4)).mini_batch
    assert result is not None
    assert result.verdict.answer == "at the edge"
    assert "ends at 1 ± 0.02 of 2/rate = 20; the top eigenvalue is at 0.25 of it" in result.verdict.reason
    assert result.verdict["batch_over_limit"] == pytest.approx(1)
    assert result.verdict["batch_end_error"] == pytest.approx(0.4)
    assert result.curves["limit"].tolist() == [LIMIT] * len(STEPS)
    assert {*result.summary["measure"]} == {"batch_sharpness", "eigenvalue"}


@pytest.mark.parametrize(
    ("factor", "answer"), [(0.5, "below the edge"), (0.85, "at the edge"), (1.5, "beyond the edge")]
)
def test_elsewhere_it_says_on_which_side(factor: float, answer: str) -> None:
    result = analysed(batch_rows(RISING * factor)).mini_batch
    assert result is not None
    assert result.verdict.answer == answer


def test_the_limit_follows_the_rate_of_each_step() -> None:
    falling = RATES.assign(lr=np.linspace(0.1, 0.05, 101))
    result = analysed(batch_rows(2 / falling["lr"].to_numpy()[STEPS]), rates=falling).mini_batch
    assert result is not None
    assert result.curves["limit"].to_numpy() == pytest.approx(2 / falling["lr"].to_numpy()[STEPS])
    assert result.verdict["batch_over_limit"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("factor", "further", "answer"),
    [
        (1.0, {"error": 0.19 * LIMIT}, "at the edge"),
        (1.0, {"error": 0.22 * LIMIT}, "can't tell"),
        (0.6, {"error": 0.19 * LIMIT}, "below the edge"),
        (0.6, {"error": 0.22 * LIMIT}, "can't tell"),
        (1.5, {"error": 0.3 * LIMIT}, "can't tell"),
        (0.6, {"error": np.nan}, "can't tell"),
    ],
)
def test_what_its_error_leaves_open_cannot_be_told(factor: float, further: dict[str, Any], answer: str) -> None:
    result = analysed(batch_rows(RISING * factor, **further)).mini_batch
    assert result is not None
    assert result.verdict.answer == answer


def test_the_interval_on_record_decides() -> None:
    """Of four mini-batches it is 3.2 standard errors wide."""
    made = batch_rows(RISING * 0.6, error=0.15 * LIMIT)
    made = made.assign(low=made["value"] - 0.48 * LIMIT, high=made["value"] + 0.48 * LIMIT)
    result = analysed(made).mini_batch
    assert result is not None
    assert result.verdict.answer == "can't tell"
    assert "its 95 % interval is 0.48 wide on either side" in result.verdict.reason


def test_of_a_run_whose_batch_size_is_not_known_the_condition_is_told() -> None:
    entry = {"optimizer": SGD.optimizer, "description": SGD.as_dict()}
    told = RunFacts(name="made", groups=[entry])
    result = analyse_minimizer(batch_rows(RISING), NO_SPECTRUM, told, rates=RATES).mini_batch
    assert result is not None
    assert result.verdict.reason.endswith("if the run's mini-batches are, as those measured, of 32.")


def test_with_several_rates_it_cannot_be_told() -> None:
    entries = [{"optimizer": SGD.optimizer, "lr": lr, "description": SGD.as_dict()} for lr in (0.1, 0.01)]
    told = RunFacts(name="made", batch_size=32, groups=entries)
    result = analyse_minimizer(batch_rows(RISING), NO_SPECTRUM, told, rates=RATES).mini_batch
    assert result is not None
    assert result.verdict.answer == "can't tell"
    assert "SGD has several rates" in result.verdict.reason


@pytest.mark.parametrize(
    ("group", "batch_size", "reason"),
    [
        (GroupDescription(optimizer="SGD", momentum=Momentum(form="heavy-ball", beta=0.9)), 32, "SGD has momentum"),
        (
            GroupDescription(optimizer="Adam", preconditioner=Preconditioner(kind="adam")),
            32,
            "Adam scales the gradient",
        ),
        (GroupDescription(optimizer="LARS", scaling=Scaling(kind="trust-ratio")), 32, "LARS scales the gradient"),
        (GroupDescription(optimizer="SGD", max_grad_norm=1.0), 32, "maximizes, or clips"),
        (GroupDescription.unknown("Mine"), 32, "isn't known"),
        (None, 32, "isn't known"),
        (SGD, 64, "on mini-batches of 64, while the run's are of 32"),
    ],
    ids=["momentum", "Adam", "LARS", "clipping", "unknown", "no groups", "another batch size"],
)
def test_where_its_condition_is_not_met_it_cannot_be_told(
    group: GroupDescription | None, batch_size: int, reason: str
) -> None:
    result = analysed(batch_rows(RISING, batch_size=batch_size), group=group).mini_batch
    assert result is not None
    assert result.verdict.answer == "can't tell"
    assert reason in result.verdict.reason
    assert len(result.summary) == 1  # the figures are shown all the same


@pytest.mark.parametrize(
    ("decay", "grad_norm", "answer", "told"),
    [
        (5e-4, 1.0, "at the edge", "batch sharpness with the weight decay of 0.0005 ends at 1 ± 0.02 of 2/rate = 20"),
        (5e-4, 0.1, "can't tell", "weight decay adds λw to the gradient, 10 % as large at the end"),
        (5e-4, np.nan, "can't tell", "adds λw to the gradient, of unknown size at the end"),
        (4.0, 1e4, "beyond the edge", "ends at 1.2 ± 0.02 of"),
        (0.0, 0.1, "at the edge", "batch sharpness ends at 1 ± 0.02"),
    ],
    ids=["small", "large", "unknown", "it counts", "none"],
)
def test_the_limit_is_that_of_the_loss_with_its_weight_decay(
    decay: float, grad_norm: float, answer: str, told: str
) -> None:
    """Measured is the loss alone; ‖w‖ is 20."""
    entry = {"optimizer": "SGD", "weight_decay": decay, "description": SGD.as_dict()}
    facts = RunFacts(name="made", batch_size=32, groups=[entry])
    rates = RATES.assign(grad_norm=grad_norm, weight_norm=20.0)
    values = RISING * (1.001 if decay > 1 else 1.0)
    result = analyse_minimizer(batch_rows(values), NO_SPECTRUM, facts, rates=rates).mini_batch
    assert result is not None
    assert result.verdict.answer == answer
    assert told in result.verdict.reason


@pytest.mark.parametrize("decay", [0.5, 0.05])
def test_with_decay_gradient_descent_diverges_where_the_sum_is_at_the_limit(decay: float) -> None:
    """On L = h·w²/2 with decay λ: by running it, just below and just above h + λ = 2/rate."""
    rate = 0.1
    for off, grows in ((-0.01, False), (0.01, True)):
        h, w = 2 / rate - decay + off, 1.0
        for _ in range(2000):
            w -= rate * (h * w + decay * w)
        assert (abs(w) > 1) == grows


def test_few_measurements_rates_of_zero_and_other_measures_alone_tell_nothing() -> None:
    few = analysed(batch_rows([1, 2], steps=[0, 10])).mini_batch
    still = analysed(batch_rows(RISING), rates=RATES.assign(lr=0.0)).mini_batch
    other = analysed(batch_rows(RISING, measure="critical_sharpness")).mini_batch
    for result, reason in ((few, "takes 5 measurements"), (still, "rates above 0"), (other, "no batch sharpness")):
        assert result is not None
        assert result.verdict.answer == "can't tell"
        assert reason in result.verdict.reason
    assert analysed(rows("hessian", RISING)).mini_batch is None


def test_it_is_no_part_of_the_other_figures() -> None:
    result = analysed(batch_rows(RISING), rows("hessian", RISING))
    assert result.further.empty
    assert result.curves["operator"].tolist() == ["hessian"] * len(STEPS)
    with pytest.raises(UserError, match=r"near=1\.5 is outside its range"):
        SharpnessRule(near=1.5)


def test_what_was_measured_in_another_mode_alone_is_left_out() -> None:
    told = RunFacts(name="made", batch_size=32, groups=[])
    result = analyse_minimizer(batch_rows(RISING), NO_SPECTRUM, told, rates=RATES, bn_mode="eval")
    assert result.mini_batch is None
    assert result.curves.empty
