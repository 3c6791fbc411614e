from __future__ import annotations

import numpy as np
import pytest

from tvlars_probe.data.batches import BatchPlan, in_order


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(("samples", "batch_size"), [(100, 32), (101, 33), (20, 20), (65, 64)])
def test_every_sample_is_in_one_batch_of_one_rank(samples: int, batch_size: int, world_size: int) -> None:
    plans = [
        BatchPlan(samples=samples, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)
    ]
    epochs = [list(plan.epoch(3)) for plan in plans]
    assert {len(e) for e in epochs} == {plans[0].steps_per_epoch}
    seen = [i for e in epochs for share in e for piece in share.pieces for i in piece]
    assert sorted(seen) == list(range(samples))
    for shares in zip(*epochs, strict=True):
        sizes = [share.size for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == shares[0].batch_size


def test_ranks_share_the_batches_that_one_rank_has() -> None:
    whole = [np.concatenate(s.pieces) for s in BatchPlan(samples=50, batch_size=16, seed=4).epoch(2)]
    parts = [
        [np.concatenate(s.pieces) for s in BatchPlan(samples=50, batch_size=16, seed=4, rank=r, world_size=2).epoch(2)]
        for r in range(2)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert np.array_equal(batch, np.concatenate(shares))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for s in BatchPlan(samples=40, batch_size=8, seed=seed).epoch(epoch) for i in s.pieces[0]]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_micro_batches_are_of_nearly_equal_size() -> None:
    plan = BatchPlan(samples=513, batch_size=513, micro_batch=256)
    assert [len(p) for p in next(plan.epoch(0)).pieces] == [171, 171, 171]
    assert plan.micro_batches == 3


def test_the_smallest_piece_is_found() -> None:
    for plan in (
        BatchPlan(samples=65, batch_size=32),
        BatchPlan(samples=100, batch_size=64, micro_batch=7, world_size=3),
        BatchPlan(samples=66, batch_size=32, world_size=4),
    ):
        plans = [BatchPlan(samples=plan.samples, batch_size=plan.batch_size, micro_batch=plan.micro_batch, rank=r,
                           world_size=plan.world_size) for r in range(plan.world_size)]  # fmt: skip
        assert plan.smallest_piece == min(len(p) for q in plans for s in q.epoch(0) for p in s.pieces)


def test_a_rank_may_have_nothing_of_a_small_batch() -> None:
    shares = list(BatchPlan(samples=9, batch_size=4, rank=1, world_size=2).epoch(0))
    assert [s.size for s in shares] == [2, 2, 0]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_counts_every_sample_once(world_size: int) -> None:
    seen = [int(i) for r in range(world_size) for piece in in_order(103, 10, r, world_size) for i in piece]
    assert sorted(seen) == list(range(103))
