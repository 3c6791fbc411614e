from __future__ import annotations

import pytest
import torch

from tvlars_probe.analyses.variants import Variant
from tvlars_probe.optimizers.description import describe
from tvlars_probe.optimizers.group_entries import to_entry
from tvlars_probe.optimizers.registry import OptimizerConfig


@pytest.mark.parametrize("is_older", [False, True])
def test_another_optimizers_alpha_is_not_that_of_phi(is_older: bool) -> None:
    """RMSprop's smoothing constant and TVLARS' φ share a name."""
    optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(2, 2))], alpha=0.7)
    entry = to_entry(*describe(optimizer), optimizer.param_groups[0])
    assert entry["phi"] is None
    if is_older:
        entry = {**entry, "phi": {"alpha": 0.7}, "description": None}
    assert Variant.of_group(entry, "tvlars").alpha == Variant().alpha


def test_a_group_of_tvlars_is_replayed_with_its_own_phi() -> None:
    optimizer = OptimizerConfig(name="tvlars", alpha=0.7, lmbda=0.2).build([torch.nn.Parameter(torch.ones(2, 2))])
    found = Variant.of_group(to_entry(*describe(optimizer), optimizer.param_groups[0]))
    assert (found.optimizer, found.alpha, found.lmbda) == ("tvlars", 0.7, 0.2)
