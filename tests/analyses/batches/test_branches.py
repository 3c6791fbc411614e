from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.analyses.made_sources import made_branch, made_run
from tvlars_probe.analyses.batches.branches import branch_sets, branches_of, is_branch
from tvlars_probe.analyses.verdict import CANT_TELL, plain
from tvlars_probe.errors import UserError

COST = {32: 0.0, 64: 0.0, 128: 0.01, 256: 0.3, 512: 0.9}
"""What each batch adds to a loss of 1."""


def planted(
    *, seeds: int = 3, noise: float = 0.01, draw: int = 0, cost: dict[int, float] = COST, **further: Any
) -> list[Any]:
    """Branches whose losses share each seed's part, ten times the noise between batch sizes."""
    rng = np.random.default_rng(draw)
    shared = rng.normal(0, 10 * noise, seeds)
    return [
        made_branch(size, seed, [3.0, 2.0, 1 + more + shared[seed] + rng.normal(0, noise)], **further)
        for size, more in cost.items()
        for seed in range(seeds)
    ]


def test_the_batch_that_starts_to_cost_lies_between_two() -> None:
    result = branches_of(planted())
    assert (result.largest_free, result.smallest_costly) == (128, 256)
    assert result.verdict.answer == "between 128 and 256"
    assert "a train_eval_loss more than 5 % above that of batch 32 at equal samples" in result.verdict.reason
    assert (result.step, result.samples) == (40, 4096)
    assert result.table["cost"].tolist() == ["yardstick", "free", "free", "costs", "costs"]
    assert result.title == "p at step 40, rate sqrt, 4,096 samples"
    assert plain(result)["largest_free"] == 128


def test_a_branch_whose_last_loss_is_no_number_has_diverged() -> None:
    gone = [made_branch(1024, seed, [3.0, 9.0, math.nan]) for seed in range(3)]
    for branch in gone:
        branch.rows["epochs"]["train_eval_acc1"] = [10.0, 10.0, 10.0]  # it was evaluated
    result = branches_of([*planted(), *gone])
    assert (result.table["cost"].iloc[-1], result.table["diverged"].iloc[-1]) == ("costs", 3)
    assert not any("not finished" in doubt for doubt in result.doubts)


def test_differences_are_paired_over_seeds() -> None:
    """Student's interval of the differences, by scipy: the seeds' common part, ten times as large, drops out."""
    runs = planted()
    result = branches_of(runs)
    loss = {(run.facts.batch_size, run.facts.seed): run.rows["epochs"]["train_eval_loss"].iloc[-1] for run in runs}
    there = [loss[256, seed] - loss[32, seed] for seed in range(3)]
    interval = stats.t.interval(0.95, 2, np.mean(there), stats.sem(there))
    row = result.table.set_index("batch_size").loc[256]
    assert (row["low"], row["high"]) == (pytest.approx(interval[0]), pytest.approx(interval[1]))
    assert row["difference"] == pytest.approx(np.mean(there))
    assert row["high"] - row["low"] < 0.15


def test_one_seed_tells_nothing() -> None:
    result = branches_of(planted(seeds=1))
    assert result.verdict.answer == CANT_TELL
    assert (result.largest_free, result.smallest_costly) == (None, None)
    assert "unknown interval, 1 seed" in result.verdict.reason
    assert any("one order of the data: there is no interval" in doubt for doubt in result.doubts)


@pytest.mark.parametrize(
    ("cost", "answer"),
    [
        ({32: 0, 64: 0.5, 128: 0.9}, "64 or below"),
        ({32: 0, 64: 0, 128: 0}, "above 128"),
        ({32: 0}, CANT_TELL),
        ({32: 0, 64: 0.05, 128: 0.05}, CANT_TELL),
    ],
    ids=["the next one costs", "none costs", "one batch", "on the line"],
)
def test_what_isnt_known_isnt_told(cost: dict[int, float], answer: str) -> None:
    result = branches_of(planted(cost=cost))
    assert result.verdict.answer == answer
    assert any("batch 32 is the yardstick" in doubt for doubt in result.doubts)


def test_the_tolerance_is_a_share_of_the_smallest_batchs_loss() -> None:
    assert branches_of(planted(), tolerance=0.5).verdict.answer == "between 256 and 512"
    assert branches_of(planted(cost={32: -0.9, 64: -0.88}, noise=0.0001)).table["cost"].tolist()[1] == "costs"


def test_branches_that_all_diverged_cost() -> None:
    gone = [made_branch(1024, seed, [3.0], epochs=3, status="diverged") for seed in range(3)]
    result = branches_of(planted(cost={32: 0, 64: 0}) + gone)
    assert result.verdict.answer == "between 64 and 1,024"
    assert result.verdict.reason.endswith("All branches of batch 1,024 diverged.")
    assert result.table["diverged"].tolist() == [0, 0, 3]
    some = branches_of(planted(cost={32: 0, 1024: 0})[:-1] + gone[-1:])
    assert some.table["cost"].tolist() == ["yardstick", "unknown"]
    assert any("at batch 1,024 some branches diverged" in doubt for doubt in some.doubts)


def test_a_branch_that_isnt_finished_doesnt_count() -> None:
    result = branches_of([*planted(), made_branch(512, 3, [3.0, 2.0], epochs=3, status="running")])
    assert any("not finished or without train_eval_loss: p-branch-40-b512-s3" in doubt for doubt in result.doubts)
    assert result.table["seeds"].tolist() == [3] * 5


def test_a_branch_that_is_there_twice_counts_once() -> None:
    """As from two folders of ``branch --out``; whichever comes last used to win."""
    runs = planted()
    worse = made_branch(256, 1, [3.0, 2.0, 9.0])
    cut_off = made_branch(64, 2, [7.0], epochs=3, status="interrupted")
    result = branches_of([cut_off, *runs, worse])
    alone = branches_of(runs)
    assert result.table.equals(alone.table)
    assert result.course.equals(alone.course)
    assert "there more than once, so that only the first counts: batch 64 with seed 2 and batch 256 with seed 1" in {
        *result.doubts
    }


def test_texts_have_the_level_of_the_intervals() -> None:
    result = branches_of(planted(), level=0.8)
    assert "(80 % interval " in result.verdict.reason
    assert result.level == 0.8
    with pytest.raises(UserError, match="level=95 is no level of an interval"):
        branches_of(planted(), level=95)


def test_the_course_has_the_differences_at_equal_samples() -> None:
    runs = [
        made_branch(size, seed, [2.0 + size / 64, 1.0 + size / 640], samples=1280)
        for size in (64, 128)
        for seed in (0, 1)
    ]
    runs += [made_branch(256, seed, [9.0]) for seed in (0, 1)]
    course = branches_of([*runs[:4], *[made_branch(256, seed, [9.0], samples=1280) for seed in (0, 1)]]).course
    assert course[["samples", "batch_size"]].to_numpy().tolist() == [[640, 128], [1280, 128], [1280, 256]]
    assert course["difference"].tolist() == pytest.approx([1.0, 0.1, 7.9])


def test_a_contradiction_is_told() -> None:
    result = branches_of(planted(cost={32: 0, 64: 0, 128: 0.5, 256: 0.0}))
    assert (result.largest_free, result.smallest_costly) == (64, 128)
    assert any("batch 256 costs nothing, though batch 128 does" in doubt for doubt in result.doubts)


def test_sets_of_branches_are_told_apart() -> None:
    later = planted(cost={32: 0, 64: 0}, branch={"step": 80})
    runs = [*later, *planted(), made_run(64, 0.1, 0, lambda x: 1 / x, samples=640, every=64)]
    assert [len(one) for one in branch_sets(runs)] == [15, 6]
    result = branches_of(runs)
    assert result.step == 40
    assert "other branches are left out: p at step 80, rate sqrt, 4,096 samples" in result.doubts
    assert branches_of([*later, *planted(cost={32: 0, 64: 0})]).step == 80
    assert [is_branch(run) for run in (runs[0], runs[-1])] == [True, False]


def test_what_cant_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="none of the runs is a branch"):
        branches_of([made_run(64, 0.1, 0, lambda x: 1 / x, samples=640, every=64)])
    with pytest.raises(UserError, match="unknown metric of branches 'loss'"):
        branches_of(planted(), metric="loss")
    with pytest.raises(UserError, match="a tolerance of -1 is outside its range"):
        branches_of(planted(), tolerance=-1)


def test_it_is_seldom_wrong() -> None:
    """Costs on both sides of the line of 5 %: how often a bound is on the wrong side, in 25 draws."""
    wrong = 0
    for draw in range(25):
        result = branches_of(planted(draw=draw, noise=0.03, cost={32: 0.0, 64: 0.01, 128: 0.03, 256: 0.1, 512: 0.3}))
        wrong += (result.largest_free or 0) > 128 or (result.smallest_costly or math.inf) < 256
    assert wrong <= 4


def test_a_batch_that_is_worse_than_a_larger_one_is_no_yardstick() -> None:
    """Beside a small batch whose rate is wrong for it, all others would be free: 256 costs beside 64."""
    result = branches_of(planted(cost={32: 1.0, 64: 0.0, 128: 0.01, 256: 0.3, 512: 0.9}))
    assert result.table["cost"].tolist() == ["worse", "yardstick", "free", "costs", "costs"]
    assert result.verdict.answer == "between 128 and 256"
    assert "above that of batch 64 at equal samples" in result.verdict.reason
    assert any("batch 32 is worse than a larger one" in doubt for doubt in result.doubts)
    assert result.table["difference"].tolist()[0] == pytest.approx(1.0, abs=0.05)
    assert {*result.course["batch_size"]} == {32, 128, 256, 512}


def test_where_the_loss_only_falls_with_the_batch_nothing_is_told() -> None:
    result = branches_of(planted(cost={32: 1.0, 64: 0.5, 128: 0.0}))
    assert result.verdict.answer == CANT_TELL
    assert "batch 128, the largest, is better than the smaller ones" in result.verdict.reason


def test_a_smallest_batch_that_diverged_is_no_yardstick() -> None:
    rest = [run for run in planted() if run.facts.batch_size > 32]
    all_diverged = branches_of([*(made_branch(32, seed, [], status="diverged") for seed in range(3)), *rest])
    assert all_diverged.table["cost"].tolist() == ["worse", "yardstick", "free", "costs", "costs"]
    one = branches_of([made_branch(32, 0, [], status="diverged"), *planted()[1:]])
    assert any("some of its branches diverged" in doubt for doubt in one.doubts)


def test_branches_without_a_common_seed_have_no_difference() -> None:
    result = branches_of([made_branch(32, 0, [1.0]), made_branch(64, 1, [2.0])])
    assert result.verdict.answer == CANT_TELL
    assert "nan" not in result.verdict.reason
    assert not any("one order of the data" in doubt for doubt in result.doubts)
