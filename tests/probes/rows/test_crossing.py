from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tvlars_probe.probes.rows.crossing import OverRanks, over_ranks

if TYPE_CHECKING:
    from torch import Tensor

Told = tuple[Any, ...]
"""A rank's loss and samples of a step, and its tokens where it tells them."""


def drained(told: Told) -> Any:
    loss, samples, *tokens = told
    rows = [SimpleNamespace(loss_told=loss is not None, samples=samples, tokens=tokens[0] if tokens else None)]
    return SimpleNamespace(losses=np.array([np.nan if loss is None else loss]), rows=rows)


def together(*told: Told) -> OverRanks:
    """What the first of several ranks learns of one step."""
    tables: list[Tensor] = []

    def send(table: Tensor) -> Tensor:
        tables.append(table)
        return torch.stack(tables).sum(0)

    for one in reversed(told):  # the last to send is the first rank, and sees the sum of all
        ranks: Any = SimpleNamespace(world_size=len(told), device=torch.device("cpu"), sum=send)
        found = over_ranks(drained(one), ranks, {"samples": 0, "tokens": 0})
    return found


@pytest.mark.parametrize(
    ("told", "loss", "samples", "weighed_by"),
    [
        ([(1.0, 8), (4.0, 4)], 2.0, 12, "samples"),
        ([(1.0, 8), (float("nan"), 0)], 1.0, 8, "samples"),  # a rank without samples has no mean
        ([(1.0, None), (4.0, None)], 2.5, None, "ranks"),
        ([(1.0, 8), (4.0, None)], 2.5, None, "ranks"),  # one of unknown size: all weigh the same
        ([(1.0, 8), (None, 8)], 1.0, 16, "samples"),  # a rank that tells no loss
        ([(None, 8), (None, 8)], None, 16, "mixed"),
        ([(1.0, 8), (float("inf"), 8)], float("inf"), 16, "samples"),
        ([(1.0, 8, 100), (4.0, 8, 200)], 3.0, 16, "tokens"),
        ([(1.0, None, 100), (4.0, None, 200)], 3.0, None, "tokens"),
        ([(1.0, 8, 100), (4.0, 8)], 2.5, 16, "samples"),  # one doesn't tell its tokens
        ([(1.0, 8, 100), (float("nan"), 8, 0)], 1.0, 16, "tokens"),
    ],
    ids=str,
)
def test_the_mean_is_that_of_the_ranks_that_tell(
    told: list[Told], loss: float | None, samples: int | None, weighed_by: str
) -> None:
    found = together(*told)
    assert found.told.tolist() == [loss is not None]
    if loss is not None:
        assert found.losses.tolist() == [loss]
        assert found.weighed_by == weighed_by
    assert (found.seen["samples"].tolist(), found.after["samples"]) == ([-1 if samples is None else samples], samples)


@pytest.mark.parametrize("others", [[], [(1.0, 8, 50)]], ids=["one rank", "two"])
def test_tokens_are_counted_beside_samples(others: list[Told]) -> None:
    found = together((1.0, 8, 100), *others)
    tokens = 100 + 50 * len(others)
    assert (found.seen["tokens"].tolist(), found.after) == (
        [tokens],
        {"samples": 8 * (1 + len(others)), "tokens": tokens},
    )
    assert together((1.0, 8), *others).after["tokens"] is None
