"""Two ranks against one, and what is put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.zoo import ZOO, fingerprint, member
from tests.ranked import on_ranks
from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.models.barlow_twins import barlow_twins_loss
from tvlars_probe.models.batch_norm import synchronize_batch_norm

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.noise.results import GradientNoise

FEWER_PIECES = (1, 2)
COLUMNS = ["gradient_square", "gradient_square_error", "noise_trace", "noise_trace_error", "loss"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 3),
    ).double()  # fmt: skip


def sample() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(80, 5, dtype=torch.float64), torch.randint(3, (80,))


def twins(z: Tensor, _: Tensor) -> Tensor:
    return barlow_twins_loss(z, z**2, 0.1)


def measured(shards: Ranks, share: slice, cut: list[Tensor]) -> list[GradientNoise]:
    """In each mode and with each kind of pieces."""
    x, y = sample()
    mine = (x[share], y[share])
    options: list[dict[str, object]] = [
        {"bn_mode": "eval"},
        {"bn_mode": "frozen-batch", "piece": 2},
        {"bn_mode": "train", "piece": 4},
    ]
    found = [
        tvlars_probe.gradient_noise(network(), F.cross_entropy, mine, shards=shards, **asked)  # type: ignore[arg-type]
        for asked in options
    ]
    # Pieces that lie on all ranks: eight samples each, in the order in which the ranks hold them.
    spread = (torch.cat([x[part] for part in cut]), torch.cat([y[part] for part in cut]))
    model = synchronize_batch_norm(network())
    found.append(tvlars_probe.gradient_noise(model, F.cross_entropy, spread, shards=shards, piece=8, bn_mode="train"))
    found.append(
        tvlars_probe.gradient_noise(network(), twins, spread, shards=shards, piece=8, is_sum_over_samples=False)
    )
    return found


def on_rank(rank: int, world_size: int) -> list[Tensor]:
    shards = Ranks.of_process_group()
    share = slice(0, 36) if rank == 0 else slice(36, 80)
    cut = [torch.arange(8 * k + 4 * rank, 8 * k + 4 * rank + 4) for k in range(10)]
    found = [torch.tensor(each.frame()[COLUMNS].to_numpy()) for each in measured(shards, share, cut)]
    empty = sample()[0][:0], sample()[1][:0]
    try:
        tvlars_probe.gradient_noise(
            network(), F.cross_entropy, empty if rank else sample(), shards=shards, piece=4, bn_mode="train"
        )
    except UserError:
        found.append(torch.ones(1))
    return found


def test_two_ranks_measure_as_one(tmp_path: Path) -> None:
    """Uneven shares; pieces on a rank each, and pieces that lie on both. A rank without samples is refused on both."""
    one = measured(Ranks(), slice(None), [torch.arange(80)])
    for told in on_ranks(on_rank, 2, tmp_path):
        assert len(told) == len(one) + 1
        for index, (two, whole) in enumerate(zip(told, one, strict=False)):
            # Part of an error comes from inner products of the first rank's first 32 pieces; here it has fewer.
            rtol = np.array([1e-8, 0.15, 1e-8, 0.15, 1e-8]) if index in FEWER_PIECES else 1e-8
            expected = whole.frame()[COLUMNS].to_numpy()
            assert (abs(two.numpy() - expected) <= rtol * abs(expected) + 1e-12).all()


@pytest.mark.parametrize("name", ZOO)
def test_measuring_changes_nothing(name: str) -> None:
    model, data = member(name)
    before = fingerprint(model, data)
    for options in ({}, {"piece": 2}):
        tvlars_probe.gradient_noise(model, F.cross_entropy, data, **options)
    after = fingerprint(model, data)
    assert [key for key in {*before, *after} if before.get(key) != after.get(key)] == []
