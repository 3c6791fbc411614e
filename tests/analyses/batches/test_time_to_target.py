from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.analyses.made_sources import made_branch, made_run
from tvlars_probe.analyses.batches.target_curves import (
    EARLY,
    MISSED,
    REACHED,
    TargetCurve,
    batch_size_of,
    chosen_metric,
    curves_of,
)
from tvlars_probe.analyses.batches.time_to_target import time_to_target
from tvlars_probe.analyses.verdict import CANT_TELL, plain
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

S_MIN, B_CRIT, TARGET = 400.0, 128.0, 0.5
SIZES = (16, 32, 64, 128, 256, 512)


def samples_to_target(batch: int) -> float:
    return S_MIN * (B_CRIT + batch)


def falling(reached_at: float) -> Callable[[np.ndarray], np.ndarray]:
    """A loss that falls as 1/x, through `TARGET` after so many samples."""
    return lambda x: TARGET * reached_at / x


def sweep(
    *, sizes: tuple[int, ...] = SIZES, seeds: int = 3, noise: float = 0.05, rates: tuple[float, ...] = (0.05, 0.1, 0.2),
    draw: int = 0, **facts: Any,
) -> list[Any]:  # fmt: skip
    """At the middle rate each batch size obeys the law; at the others it takes half as many samples more."""
    rng = np.random.default_rng(draw)
    runs = []
    for batch in sizes:
        for place, rate in enumerate(rates):
            for seed in range(seeds):
                slow = 1 if place == len(rates) // 2 else 1.5
                at = samples_to_target(batch) * slow * math.exp(rng.normal(0, noise))
                runs.append(made_run(batch, rate, seed, falling(at), samples=800_000, every=8_192, **facts))
    return runs


def test_a_loss_between_two_evaluations_is_interpolated() -> None:
    curve = TargetCurve(samples=np.array([10.0, 20, 40]), values=np.array([4.0, 2, 1]))
    assert curve.reach(math.sqrt(2)) == (REACHED, pytest.approx(20 * math.sqrt(2), rel=1e-12))
    assert curve.reach(0.9) == (MISSED, pytest.approx(math.nan, nan_ok=True))
    assert curve.reach(5.0)[0] == EARLY
    assert curve.reach(4.0) == (REACHED, 10.0)
    accuracy = TargetCurve(samples=np.array([10.0, 40]), values=np.array([-50.0, -90]))
    assert accuracy.reach(-70.0) == (REACHED, pytest.approx(20.0))


def test_the_law_is_found_at_each_batchs_best_rate() -> None:
    result = time_to_target(sweep(noise=0.01), target=TARGET)
    assert result.batches["lr"].tolist() == [0.1] * 6
    assert result.batches["seeds"].tolist() == [3] * 6
    assert result.s_min.value == pytest.approx(S_MIN, rel=0.03)
    assert result.b_crit.value == pytest.approx(B_CRIT, rel=0.05)
    assert result.e_min.value == pytest.approx(S_MIN * B_CRIT, rel=0.03)
    assert result.b_crit.low < result.b_crit.value < result.b_crit.high
    assert result.doubts == ()
    assert result.verdict.answer == f"about {result.b_crit.value:,.0f}"
    assert result.verdict["b_crit_low"] == result.b_crit.low
    assert result.table["is_best"].sum() == 18
    best = result.table[result.table["is_best"]]
    assert (best["steps"] * best["batch_size"]).tolist() == pytest.approx(best["samples"].tolist())
    assert plain(result)["b_crit"]["value"] == result.b_crit.value


def test_a_target_is_chosen_that_every_batch_reaches() -> None:
    result = time_to_target(sweep(noise=0.01))
    assert result.is_chosen
    assert (result.table.loc[result.table["is_best"], "outcome"] == REACHED).all()
    # At the end of 800,000 samples the slowest batch, 512, stands here.
    assert result.target == pytest.approx(TARGET * samples_to_target(512) / 800_000, rel=0.1)
    assert result.b_crit.value == pytest.approx(B_CRIT, rel=0.05)


def test_a_batch_that_never_comes_there_is_left_out_of_the_choice() -> None:
    runs = sweep(noise=0.01)
    for rate in (0.1, 0.2):
        runs += [made_run(4096, rate, seed, lambda x: 30 + 1e5 / x, samples=800_000, every=8_192) for seed in range(3)]
    result = time_to_target(runs)
    assert result.b_crit.value == pytest.approx(B_CRIT, rel=0.05)
    assert any("the target isn't reached by every seed of batch 4,096" in doubt for doubt in result.doubts)
    assert result.batches.set_index("batch_size").loc[4096, "missed"] == 3


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"rates": (0.1,)}, "one learning rate was tried with batches 16, 32"),
        ({"rates": (0.1, 0.2)}, "is at the edge of those tried"),
        ({"seeds": 1}, "one seed of each batch size: there is no interval"),
        ({"sizes": (32, 128, 512)}, "3 batch sizes reached the target: give 4 or more"),
        ({"sizes": (2, 3, 4, 6)}, "all batches lie below the critical one: try larger ones"),
        ({"sizes": (8192, 16384, 32768, 65536), "noise": 0.005}, "all batches lie above the critical one"),
        ({"schedule": "cosine"}, "follows a schedule that ends with the run"),
    ],
)
def test_it_says_where_the_grid_doesnt_hold_the_answer(runs: dict[str, Any], said: str) -> None:
    large = max(runs.get("sizes", SIZES)) > 8000
    made = sweep(**runs)
    if large:  # the loss must be evaluated before the target
        made = [
            made_run(s.facts.batch_size, s.facts.peak_lr, s.facts.seed, falling(samples_to_target(s.facts.batch_size)
                     * math.exp(0.005 * s.facts.seed)), samples=2**26, every=2**17) for s in made
        ]  # fmt: skip
    result = time_to_target(made, target=TARGET)
    assert any(said in doubt for doubt in result.doubts), result.doubts


def test_with_one_seed_it_doesnt_tell() -> None:
    result = time_to_target(sweep(seeds=1), target=TARGET)
    assert result.verdict.answer == CANT_TELL
    assert "interval unknown" in result.verdict.reason
    assert math.isnan(result.b_crit.low)
    assert 60 < result.b_crit.value < 260


def test_texts_have_the_level_of_the_intervals() -> None:
    result = time_to_target(sweep(), target=TARGET, level=0.8)
    assert result.verdict["b_crit_low"] == result.b_crit.low
    assert {f.meaning for f in result.verdict.figures} >= {"lower end of its 80 % interval"}


def test_a_target_that_isnt_reached_gives_no_fit() -> None:
    result = time_to_target(sweep(), target=1e-4)
    assert (result.verdict.answer, result.fit) == (CANT_TELL, None)
    assert math.isnan(result.b_crit.value)
    assert any("no run reached the target" in doubt for doubt in result.doubts)
    assert "no batch size reached the target: give 4 or more" in result.doubts
    early = time_to_target(sweep(), target=1e6)
    assert any("reached the target before the first evaluation" in doubt for doubt in early.doubts)


def test_runs_without_evaluations_are_compared_by_their_training_loss() -> None:
    runs = sweep(noise=0.01)
    for run in runs:
        run.rows["epochs"] = run.rows["epochs"].drop(columns="train_eval_loss")
    assert chosen_metric(runs, None) == "loss"
    result = time_to_target(runs, target=TARGET)
    assert result.b_crit.value == pytest.approx(B_CRIT, rel=0.05)
    # The mean of 1/x over a stretch, at its middle: of the second one, from w to 2w.
    curve = curves_of(runs[:1], "loss")[0]
    assert np.diff(curve.samples) == pytest.approx(64.0)  # four batches of 16
    assert curve.samples[0] == 32.0


def test_a_batch_size_that_no_manifest_tells_is_read_off_the_samples() -> None:
    [run] = sweep(sizes=(64,), seeds=1, rates=(0.1,))
    run.facts = type(run.facts)(name="mine")
    assert batch_size_of(run) == 64
    run.rows["steps"]["samples"] = np.nan
    with pytest.raises(UserError, match="mine doesn't tell its batch size"):
        batch_size_of(run)


def test_runs_of_several_kinds_are_refused_and_branches_passed_over() -> None:
    runs = sweep(seeds=1)
    with pytest.raises(UserError, match=r"of several optimizers \(LARS and SGD\): give those of one"):
        time_to_target([*runs, *sweep(seeds=1, optimizer="LARS")])
    with pytest.raises(UserError, match="unknown metric of a target 'speed'"):
        time_to_target(runs, metric="speed")
    branch = made_branch(64, 0, [1.0])
    with pytest.raises(UserError, match="there are no runs but branches"):
        time_to_target([branch])
    assert len(time_to_target([*runs, branch], target=TARGET).table) == len(runs)


def test_its_interval_holds_the_critical_batch() -> None:
    """Through interpolation and the choice of rates: in 20 draws; docs/guides/branches.md tells how often in many."""
    hits = 0
    for draw in range(20):
        result = time_to_target(sweep(draw=draw, rates=(0.1,), noise=0.1), target=TARGET, seed=draw)
        hits += result.b_crit.low <= B_CRIT <= result.b_crit.high
    assert hits >= 17


def test_runs_that_differ_in_more_than_the_seed_are_no_repetitions() -> None:
    """With momentum all need a third of the steps: taken for seeds, they would make S_min and its interval wrong."""
    plain_runs, config = sweep(seeds=2), {"optimizer": {"momentum": 0.9}}
    faster = [
        made_run(
            batch, 0.1, seed, falling(samples_to_target(batch) / 3 * (1 + seed / 50)), samples=500_000, every=2_000,
            config=config,
        )
        for batch in SIZES
        for seed in range(2)
    ]  # fmt: skip
    result = time_to_target([*plain_runs, *faster], target=TARGET)
    assert result.s_min.value == pytest.approx(S_MIN / 3, rel=0.03)
    assert result.b_crit.value == pytest.approx(B_CRIT, rel=0.03)
    assert {*result.batches["settings"]} == {"momentum 0.9"}
    assert result.batches["seeds"].tolist() == [2] * len(SIZES)
    assert "runs of one batch and rate differ in momentum: each batch's best is taken" in result.doubts
    some = time_to_target([*plain_runs, *faster[:4]], target=TARGET)
    assert any("not every batch was tried with all" in doubt for doubt in some.doubts)


def test_settings_that_go_with_the_batch_or_change_nothing_tell_no_runs_apart() -> None:
    runs = [run for size in SIZES for run in sweep(sizes=(size,), config={"optimizer": {"momentum": 1 - size / 1000}})]
    longer = sweep(draw=1, epochs=40, config={"optimizer": {}, "noise": {"every": 10}})
    assert {*time_to_target(runs).table["settings"]} == {""}
    assert {*time_to_target([*sweep(epochs=20, config={"optimizer": {}}), *longer]).table["settings"]} == {""}


def test_other_data_and_impossible_targets_are_refused() -> None:
    with pytest.raises(UserError, match=r"several sizes of training data \(500 and 1,000 samples\)"):
        time_to_target([*sweep(train_samples=500), *sweep(train_samples=1000)])
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="is no train_eval_loss to reach"):
            time_to_target(sweep(), target=target)
    with pytest.raises(UserError, match="allowed: above 0, below 100"):
        time_to_target(sweep(), target=100, metric="test_acc1")
