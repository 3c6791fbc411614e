from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tvlars_probe.probes.rows.crossing import over_ranks

if TYPE_CHECKING:
    from torch import Tensor

Told = tuple[float | None, int | None]
"""A rank's loss and samples of a step."""


def drained(told: Told) -> Any:
    loss, samples = told
    rows = [SimpleNamespace(loss_told=loss is not None, samples=samples)]
    return SimpleNamespace(losses=np.array([np.nan if loss is None else loss]), rows=rows)


def together(*told: Told) -> tuple[Any, ...]:
    """What the first of several ranks learns of one step."""
    tables: list[Tensor] = []

    def send(table: Tensor) -> Tensor:
        tables.append(table)
        return torch.stack(tables).sum(0)

    for one in reversed(told):  # the last to send is the first rank, and sees the sum of all
        ranks: Any = SimpleNamespace(world_size=len(told), device=torch.device("cpu"), sum=send)
        found = over_ranks(drained(one), ranks, 0)
    return found


@pytest.mark.parametrize(
    ("told", "loss", "samples"),
    [
        ([(1.0, 8), (4.0, 4)], 2.0, 12),
        ([(1.0, 8), (float("nan"), 0)], 1.0, 8),  # a rank without samples has no mean
        ([(1.0, None), (4.0, None)], 2.5, None),
        ([(1.0, 8), (4.0, None)], 2.5, None),  # one of unknown size: all weigh the same
        ([(1.0, 8), (None, 8)], 1.0, 16),  # a rank that tells no loss
        ([(None, 8), (None, 8)], None, 16),
        ([(1.0, 8), (float("inf"), 8)], float("inf"), 16),
    ],
    ids=str,
)
def test_the_mean_is_that_of_the_ranks_that_tell(told: list[Told], loss: float | None, samples: int | None) -> None:
    losses, is_told, seen, after = together(*told)
    assert is_told.tolist() == [loss is not None]
    if loss is not None:
        assert losses.tolist() == [loss]
    assert (seen.tolist(), after) == ([-1 if samples is None else samples], samples)
