from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvlars_probe.data.batches import BatchPlan
from tvlars_probe.data.stretches import StretchPlan


def samples_of(plan: BatchPlan, epoch: int, first: int = 0) -> list[list[int]]:
    return [[int(i) for piece in share.pieces for i in piece] for share in plan.epoch(epoch, first)]


def test_the_batches_are_cut_from_one_permutation_after_another() -> None:
    plan = StretchPlan(samples=10, batch_size=4, stretch=12, seed=3, stream=7)
    batches = [batch for epoch in range(5) for batch in samples_of(plan, epoch)]
    assert {len(batch) for batch in batches} == {4}
    stream = [*itertools.chain(*batches)]
    assert len(stream) == 60
    assert all(sorted(stream[start : start + 10]) == [*range(10)] for start in range(0, 60, 10))
    assert len({tuple(stream[start : start + 10]) for start in range(0, 60, 10)}) == 6


def test_other_batch_sizes_see_the_same_samples_in_the_same_order() -> None:
    def seen(batch_size: int) -> list[list[int]]:
        plan = StretchPlan(samples=10, batch_size=batch_size, stretch=12, seed=3, stream=7)
        return [[*itertools.chain(*samples_of(plan, epoch))] for epoch in range(3)]

    assert seen(2) == seen(3) == seen(6) == seen(5)


def test_it_goes_on_in_the_order_of_another_run() -> None:
    """From the second batch of epoch 2 on."""
    parent = BatchPlan(samples=12, batch_size=4, seed=5)
    wanted = samples_of(parent, 2)[1:] + samples_of(parent, 3) + samples_of(parent, 4)[:1]
    plan = StretchPlan(samples=12, batch_size=4, stretch=12, seed=5, first_pass=2, skipped=4)
    assert samples_of(plan, 0) + samples_of(plan, 1) == wanted
    passes = [share.epoch for epoch in (0, 1) for share in plan.epoch(epoch)]
    assert passes == [2, 2, 3, 3, 3, 4]


def test_a_stream_of_its_own_repeats_no_order_of_the_seed() -> None:
    streams = [StretchPlan(samples=50, batch_size=50, stretch=50, seed=1, stream=s) for s in (0, 1, 40)]
    orders = [tuple(samples_of(plan, epoch)[0]) for plan in streams for epoch in range(3)]
    orders += [tuple(samples_of(BatchPlan(samples=50, batch_size=50, seed=1), epoch)[0]) for epoch in range(3)]
    assert len({*orders}) == 12


@pytest.mark.parametrize("world_size", [1, 3])
def test_it_goes_on_within_a_stretch_and_on_all_ranks(world_size: int) -> None:
    plans = [
        StretchPlan(samples=10, batch_size=4, stretch=18, seed=3, stream=7, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    whole = StretchPlan(samples=10, batch_size=4, stretch=18, seed=3, stream=7)
    assert whole.steps_per_epoch == 5
    for rank_batches in zip(*[samples_of(plan, 1, 2) for plan in plans], samples_of(whole, 1)[2:], strict=True):
        *ranks, batch = rank_batches
        assert [*itertools.chain(*ranks)] == batch
    # The last batch of a stretch has what is left.
    assert [len(batch) for batch in samples_of(whole, 0)] == [4, 4, 4, 4, 2]


def test_the_smallest_piece_is_that_of_a_stretch() -> None:
    plan = StretchPlan(samples=100, batch_size=32, stretch=80)
    assert plan.smallest_piece == 16
    assert np.min([share.size for share in plan.epoch(0)]) == 16
