from __future__ import annotations

import pytest

from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import UserError
from tvlars_probe.runners.phases.probe_sample import ProbeSample


def test_draws_are_disjoint_seeded_and_begin_with_the_sample_taken_alone() -> None:
    images = DataConfig(name="digits", limit=100).load().train
    draws = ProbeSample.draws(images, 30, 3)
    drawn = [index for sample in draws for index in sample.indices]
    assert len({*drawn}) == len(drawn) == 90
    assert {*drawn} <= {*range(100)}
    assert draws[0].indices == ProbeSample.draw(images, 30).indices
    assert [s.indices for s in draws] == [s.indices for s in ProbeSample.draws(images, 30, 3)]
    assert len({s.sample_id for s in (*draws, *ProbeSample.draws(images, 30, 3, seed=1))}) == 6
    assert all(sample.indices == tuple(sorted(sample.indices)) for sample in draws)


def test_draws_may_take_all_the_data_and_no_more() -> None:
    images = DataConfig(name="digits", limit=100).load().train
    drawn = [index for sample in ProbeSample.draws(images, 25, 4) for index in sample.indices]
    assert sorted(drawn) == [*range(100)]
    with pytest.raises(UserError, match="--draws up to 3 with that size, or --samples up to 25 with so many draws"):
        ProbeSample.draws(images, 26, 4)
    with pytest.raises(UserError, match=r"disjoint draws take 101, there are 100 \(allowed: --draws up to 100 with"):
        ProbeSample.draws(images, 1, 101)
    with pytest.raises(UserError, match="--samples 0: there are 100"):
        ProbeSample.draws(images, 0, 4)
