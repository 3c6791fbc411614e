"""One rank with the device's own backend: NCCL on CUDA, gloo on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tvlars_probe
from tests.gpu.networks import OURS, batch, network, train
from tvlars_probe.collectives import Ranks

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_under_ddp_is_recorded(device: torch.device, tmp_path: Path) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(network(device))
        optimizer = OURS["TVLARS"](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
            train(rec, model, optimizer, batch(device), steps=3)
        ranks = Ranks.of_process_group(device)
        total = torch.ones(3, device=device)
        assert ranks.sum(total).tolist() == [1.0, 1.0, 1.0]
        assert ranks.agree([3, 0]) == [3, 0]
    finally:
        dist.destroy_process_group()
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert len(rows) == 3 * len(list(network(device).parameters()))
    assert not rows["parameter"].str.startswith("module.").any()
