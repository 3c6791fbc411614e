"""Pairs of runs that differ in warm-up: which are pairs, and what is said of each peak rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.analyses.synthetic import warm
from tests.analyses.warmup.made_runs import T, W, grouped, judged
from tvlars_probe.analyses.warmup.pairs import pair_warmups

if TYPE_CHECKING:
    from tvlars_probe.analyses.warmup.analysis import Warmup


def test_pairs_have_one_peak_rate_and_seed_and_gains_are_with_minus_without() -> None:
    steady = {"a.weight": np.full(T, 4.0)}
    results = []
    for seed in range(3):
        results.append((judged(steady, warmup=0, name=f"plain{seed}", seed=seed, batch_size=8), 90.0 + seed))
        results.append(
            (judged(steady, name=f"warm{seed}", seed=seed, batch_size=8, schedule="lars-warm"), 93.0 + 1.1 * seed)
        )
    results.append((judged(steady, warmup=0, name="other", seed=0, batch_size=8, peak_lr=1.0, data="else"), 10.0))
    pairs = pair_warmups(results)
    assert pairs.pairs["run_without"].tolist() == ["plain0", "plain1", "plain2"]
    assert pairs.pairs["run_with"].tolist() == ["warm0", "warm1", "warm2"]
    assert pairs.pairs["gain"].tolist() == pytest.approx([3.0, 3.1, 3.2])
    assert pairs.verdict.answer == "needed"
    assert pairs.cells["outcome"].tolist() == ["needed"]
    assert "compare it with --schedule cosine" in pairs.verdict.reason
    assert pair_warmups(results[:1]).verdict.answer == "can't tell"


def pair(gains: dict[int, float], **facts: Any) -> list[tuple[Warmup, float | None]]:
    """Per seed, a run with cosine and one that has warm-up, too."""
    steady = {"a.weight": np.full(T, 4.0)}
    made: list[tuple[Warmup, float | None]] = []
    for seed, gain in gains.items():
        told = {"seed": seed, "batch_size": 8, "config": {"optimizer": {"name": "lars"}, "epochs": 3}, **facts}
        made.append((judged(steady, warmup=0, name=f"plain{seed}", **{"schedule": "cosine", **told}), 90.0))
        made.append((judged(steady, name=f"warm{seed}", **{**told, "schedule": "lars-warm"}), 90.0 + gain))
    return made


def test_only_runs_that_differ_in_nothing_else_are_paired_and_a_seed_counts_once() -> None:
    results = pair({0: 1.0, 1: 1.2})
    other = pair({0: 50.0}, config={"optimizer": {"name": "lars", "excluded_lr": 0.01}, "epochs": 3})[1:]
    none = pair({0: 0.0}, schedule="none")[:1]
    pairs = pair_warmups([*results, *other, *none, *results[:2]])
    alone = pairs.pairs[pairs.pairs["alone"]]
    assert {round(gain, 6) for gain in alone["gain"]} == {1.0, 1.2}
    assert pairs.verdict["seeds"] == 2
    assert pairs.verdict["gain"] == pytest.approx(1.1)
    # 1.1 ± 1.27 points.
    assert pairs.verdict.answer == "can't tell"
    assert "at peak 1: can't tell (+1.10 points" in pairs.verdict.reason
    assert not pairs.pairs[~pairs.pairs["alone"]].empty


def test_loops_that_tell_no_peak_are_paired_by_the_rates_on_record() -> None:
    def loop(name: str, *rates: np.ndarray) -> tuple[Warmup, float | None]:
        tensors = dict(zip(("a", "b"), rates, strict=True))
        return grouped(tensors, name=name, peak_lr=None, seed=0, schedule=None), 90.0

    results = [
        loop("warm", warm(T, W), 0.5 * warm(T, W)), loop("plain", np.ones(T), np.full(T, 0.5)),
        loop("higher", np.full(T, 2.0), np.ones(T)), loop("other", np.ones(T), np.full(T, 0.25)),
    ]  # fmt: skip
    pairs = pair_warmups(results).pairs
    assert pairs[["run_with", "run_without", "peak_lr"]].to_numpy().tolist() == [["warm", "plain", 1.0]]


def test_each_rate_and_optimizer_has_its_own_outcome_and_none_is_pooled() -> None:
    gains = {0: 1.0, 1: 1.01, 2: 1.02}
    lost = {seed: -gain for seed, gain in gains.items()}
    none = {seed: gain - 1.01 for seed, gain in gains.items()}
    both = pair(gains) + pair(lost, peak_lr=4.0) + pair(none, optimizer="LAMB")
    result = pair_warmups(both)
    assert result.cells[["optimizer", "peak_lr", "outcome"]].to_numpy().tolist() == [
        ["LAMB", 1.0, "made no difference"], ["LARS", 1.0, "needed"], ["LARS", 4.0, "harmful"],
    ]  # fmt: skip
    assert result.verdict.answer == "depends on the rate"
    assert "LARS at peak 1: needed (+1.01 points, 95 % [+0.99, +1.03] over 3 seeds)" in result.verdict.reason
    assert "LARS at peak 4: harmful (-1.01 points" in result.verdict.reason


def diverged(seed: int, **told: Any) -> tuple[Warmup, float | None]:
    """A run without warm-up that was lost at once."""
    exploding = np.where(np.arange(T) < 3, 2.0, np.inf)
    facts = {"seed": seed, "batch_size": 8, "schedule": "cosine", "config": pair({0: 0.0})[0][0].facts.config, **told}
    return judged({"a.weight": np.full(T, 4.0)}, warmup=0, loss=exploding, status="diverged", **facts), None


def test_a_run_that_diverged_counts_with_the_accuracy_of_equal_guesses() -> None:
    warm_runs = pair({0: 0.0, 1: 1.0, 2: 2.0}, classes=10)[1::2]
    result = pair_warmups([*warm_runs, *(diverged(seed, classes=10) for seed in range(3))])
    assert result.pairs["gain"].tolist() == [80.0, 81.0, 82.0]
    assert result.pairs["rescued"].tolist() == [True] * 3
    assert result.verdict.answer == "needed"
    assert "3 runs without warm-up diverged" in result.verdict.reason
    assert result.cells["without"].tolist() == [10.0]


def test_of_a_run_that_diverged_without_known_classes_a_rescue_is_told_and_no_gain() -> None:
    result = pair_warmups([diverged(0), *pair({0: 0.0})[1:]])
    assert result.pairs["rescued"].tolist() == [True]
    assert result.verdict.answer == "can't tell"
    assert "no pair has two test accuracies" in result.verdict.reason
    assert "1 run without warm-up diverged" in result.verdict.reason


def test_where_neither_side_learned_there_is_no_rate_to_ask_about() -> None:
    dead = [(w, 11.0) for w, _ in pair({0: 0.0, 1: 0.0, 2: 0.0}, classes=10)]
    result = pair_warmups(dead)
    assert result.verdict.answer == "never learned"
    assert "nothing was learned with warm-up or without (11 % at best)" in result.verdict.reason
    # Without known classes 11 % may be well above chance.
    assert pair_warmups([(w, 11.0) for w, _ in pair({0: 0.0, 1: 0.0, 2: 0.0})]).verdict.answer == "made no difference"


def test_a_reason_that_would_be_long_points_to_the_table() -> None:
    many = [run for rate in range(1, 9) for run in pair({0: 0.0, 1: 0.1}, peak_lr=float(rate))]
    assert "2 more cells in the table" in pair_warmups(many).verdict.reason


def test_rates_that_nobody_can_tell_do_not_make_the_answer_depend_on_the_rate() -> None:
    unknown, even = pair({0: -30.0, 1: 30.0}), pair({0: 0.1, 1: 0.2}, peak_lr=4.0)
    dead = [(w, 11.0) for w, _ in pair({0: 0.0, 1: 0.0}, peak_lr=9.0, classes=10)]
    answers = [pair_warmups(runs).verdict.answer for runs in (unknown + dead, unknown + even, even + dead)]
    assert answers == ["can't tell", "can't tell", "made no difference"]


def test_pairs_are_in_order_of_their_rates() -> None:
    runs = [run for rate in (20.0, 6.0) for run in pair({1: 0.0, 0: 0.1}, peak_lr=rate)]
    assert pair_warmups(runs).pairs[["peak_lr", "seed"]].to_numpy().tolist() == [[6, 0], [6, 1], [20, 0], [20, 1]]
