"""What has no pieces: layers that join the samples of all ranks."""

from __future__ import annotations

import pytest
from torch import nn

from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.models.batch_norm import synchronize_batch_norm
from tvlars_probe.probes.rows.pieces import refuse_joined_samples


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, synchronize_batch_norm])
def test_layers_that_join_the_samples_of_all_ranks_are_refused_by_name(convert: object) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    refuse_joined_samples(model, Ranks(world_size=2))
    refuse_joined_samples(None, Ranks(world_size=2))
    joined = convert(model)  # type: ignore[operator]
    refuse_joined_samples(joined, Ranks())
    with pytest.raises(UserError, match=r"noise: 1 \(\w+BatchNorm\w*\) takes its statistics over all ranks"):
        refuse_joined_samples(joined, Ranks(world_size=2))
