"""The figures of whole tensors from those of shards, and which ranks hold them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import tvlars_probe
from tests.ranked import on_ranks
from tests.sharded import needs_fsdp, sharded
from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.shards import TensorFigures, copies_of, holders_of, shard_of, whole_figures

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (torch.float32, 1.0), (torch.float64, 1e200), (torch.float64, 1e-200), (torch.float64, 0.0)


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_the_figures_of_shards_make_those_of_the_whole(dtype: torch.dtype, size: float) -> None:
    """Two tensors on four ranks: one in four shards of which one is empty, one in two that two ranks hold each."""
    whole = [torch.linspace(-1, 3, 11, dtype=dtype) * size, torch.linspace(1, 2, 6, dtype=dtype) * size]
    shards = [[*whole[0].split([4, 4, 3]), whole[0][:0]], [*whole[1].chunk(2)] * 2]
    sent: list[torch.Tensor] = []

    def send(sums: torch.Tensor) -> torch.Tensor:
        sent.append(sums)
        return torch.stack(sent).sum(0)

    ranks: Any = SimpleNamespace(sum=send)
    copies = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for rank in range(4):
        mine = [parts[rank].double() for parts in shards]
        norms = torch.stack([torch.linalg.vector_norm(t / (size or 1.0)) * size for t in mine])
        dots = torch.stack([t.sum() for t in mine])
        (found,) = whole_figures([TensorFigures([norms], [dots])], [copies], ranks, wide=dtype == torch.float64)
    expected = [(torch.linalg.vector_norm(t.double() / (size or 1.0)) * size).item() for t in whole]
    assert found.norms[0].tolist() == pytest.approx(expected, rel=1e-12, abs=0.0)
    assert found.dots[0].tolist() == pytest.approx([t.double().sum().item() for t in whole], rel=1e-12, abs=0.0)


def test_a_norm_that_is_not_finite_stays_so() -> None:
    norms = torch.tensor([float("inf"), float("nan"), 2.0], dtype=torch.float64)
    (found,) = whole_figures(
        [TensorFigures([norms], [norms])], [torch.ones(3, dtype=torch.float64)], Ranks(), wide=True
    )
    assert found.norms[0].tolist() == pytest.approx([float("inf"), float("nan"), 2.0], nan_ok=True)


def counted(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    found: dict[str, Any] = {}
    for placements in ([Shard(0), Shard(1)], [Shard(0), Replicate()], [Replicate(), Replicate()], [Shard(0), Shard(0)]):
        t = distribute_tensor(torch.ones(3, 3), mesh, placements)
        held = torch.tensor([shard_of(t).numel()])
        torch.distributed.all_reduce(held)
        found[str(placements)] = [copies_of(t, world_size), held.item() / t.numel()]
    # Terms of a sum become a shard of it, as the parameter's is; the tensor itself stays as it is.
    terms = DTensor.from_local(torch.full((4, 2), float(rank)), mesh, [Partial(), Partial()])
    like = distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0), Replicate()])
    found["terms"] = shard_of(terms, like=like).flatten().tolist()
    found["still terms"] = [placement.is_partial() for placement in terms.placements]
    found["refused"] = refusals(mesh, folder)
    return found


def refusals(mesh: Any, folder: str) -> dict[str, str]:
    """What is said of DTensors that the ranks don't hold together."""
    part, model = nn.Linear(2, 2), sharded("fsdp", 4)
    fully_shard(part, mesh=mesh["model"])
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (part, model)]
    told = {}
    for name, module, optimizer, together in (
        ("part", part, optimizers[0], None),
        ("alone", model, optimizers[1], False),
        ("gathered", model, optimizers[1], None),
    ):
        if name == "gathered":
            with torch.no_grad():
                model(torch.ones(4, 1, 8))
        with pytest.raises(UserError) as refused, tvlars_probe.record(module, optimizer, folder, distributed=together):
            pass
        told[name] = str(refused.value)
    both = [distribute_tensor(torch.ones(4), mesh[name], [Shard(0)]) for name in ("data", "model")]
    with pytest.raises(UserError) as refused:
        holders_of(both, torch.device("cpu"))
    return {**told, "both": str(refused.value)}


@needs_fsdp
@pytest.mark.slow
def test_who_holds_a_dtensor(tmp_path: Path) -> None:
    for found in on_ranks(counted, 4, tmp_path, str(tmp_path / "run")):
        refused = found.pop("refused")
        assert found.pop("terms") == [6.0] * 4
        assert found.pop("still terms") == [True, True]
        assert {placed: copies for placed, (copies, held) in found.items() if copies != held} == {}
        assert refused["part"].startswith("weight is a DTensor on a mesh of 2 ranks, and 4 read together")
        assert refused["alone"].startswith("up.weight is a DTensor on a mesh of 4 ranks, and 1 read together")
        assert "record() before the first forward pass" in refused["gathered"]
        assert "on meshes of up to 2 ranks, and the process group has 4" in refused["both"]
    assert not (tmp_path / "run").exists()
