"""The objective whose samples' gradients are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tvlars_probe.curvature.batches import as_batches, consecutive
from tvlars_probe.curvature.objective import Objective, is_supervised
from tvlars_probe.noise.measuring import joins_samples

if TYPE_CHECKING:
    from torch import nn

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.batches import Data
    from tvlars_probe.curvature.objective import Compute, Weights


def objective_of(
    model: nn.Module,
    compute: Compute,
    data: Data,
    *,
    bn_mode: str = "eval",
    shards: Ranks,
    weights: Weights | None = None,
    is_sum_over_samples: bool = True,
) -> Objective:
    """The objective of which `tvlars_probe.noise.measuring.noise_of` takes the samples apart.

    Its arguments are those of `Objective`. One batch is given to it in two halves: what is taken apart is first tested
    to be a mean over samples. Where pieces have statistics or a loss of their own, the objective is this rank's alone,
    as pieces lie on one rank each.

    Raises:
        UserError: as `Objective` does.
    """
    given = as_batches(data, pairs=is_supervised(compute))
    if joins_samples(bn_mode, model, is_sum_over_samples=is_sum_over_samples):
        whole = tuple(torch.cat(tensors) for tensors in zip(*given, strict=True))
        return Objective(
            model, compute, whole, bn_mode=bn_mode, weights=weights, is_sum_over_samples=is_sum_over_samples
        )
    if len(given) == 1 and (n := len(given[0][0])) > 1:
        given = [consecutive(given[0], 0, n // 2), consecutive(given[0], n // 2, n)]
    return Objective(model, compute, given, bn_mode=bn_mode, shards=shards, weights=weights)
