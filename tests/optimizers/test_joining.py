"""Steps of DTensors are those of the whole tensors in one process, and cost one sum over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from tests.ranked import on_ranks
from tests.sharded import KINDS, Net, farthest, losses, needs_fsdp, sharded, share
from tvlars_probe import LAMB, LARS, NLAMB, TVLARS
from tvlars_probe.optimizers.layerwise import QUANTITIES

if TYPE_CHECKING:
    from pathlib import Path


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices and the rest: so that several groups have DTensors."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if (p.ndim > 1) is wide], "weight_decay": 0.01 * wide} for wide in (True, False)
    ]


OPTIMIZERS: dict[str, Any] = {
    "lars": lambda model: LARS(groups(model), 0.5, eta=0.1),
    "lars, foreach": lambda model: LARS(groups(model), 0.5, eta=0.1, foreach=True),
    "lars, sum, no momentum": lambda model: LARS(model.parameters(), 0.5, eta=0.1, momentum=0.0, denominator="sum"),
    "lars, gradient, clipped": lambda model: LARS(
        model.parameters(), 0.5, eta=0.1, denominator="grad", trust_clip=True, lars_adaptation_filter=True
    ),
    "tvlars": lambda model: TVLARS(model.parameters(), 0.1, eta=0.1, lmbda=0.1),
    "lamb": lambda model: LAMB(groups(model), 0.02),
    "nlamb": lambda model: NLAMB(model.parameters(), 0.02, weight_decay=0.1),
}


MAIN = ("lars", "tvlars", "lamb")
"""Those that are stepped on every kind of mesh; the others only where two ranks have shards."""


def figures(optimizer: Any) -> torch.Tensor:
    return torch.stack([getattr(optimizer.last_step, name) for name in QUANTITIES]).nan_to_num(nan=-1.0)


def stepped(rank: int, world_size: int, folder: str) -> dict[str, list[float]]:
    """By optimizer and kind: how far weights and figures are from those of one process, and a step's collectives."""
    found = {}
    for kind in KINDS[world_size]:
        for name in OPTIMIZERS if (kind, world_size) == ("fsdp", 2) else MAIN:
            make = OPTIMIZERS[name]
            model, twin = sharded(kind, world_size), Net()
            mine, its = make(model), make(twin)
            [*losses(model, mine, range(2), share(kind, rank, world_size))]
            [*losses(twin, its, range(2))]
            largest = figures(its).abs().amax(1, keepdim=True)
            off = ((figures(mine) - figures(its)).abs() / largest).max().item()
            # Once more, with the same gradients.
            with CommDebugMode() as calls:
                mine.step()
            its.step()
            found[f"{kind}: {name}"] = [farthest(model, twin), off, calls.get_total_counts()]
    found |= continued(rank, world_size, folder)
    return found if world_size == 4 else {**found, "a mesh of one": [on_a_mesh_of_one(rank)]}


def continued(rank: int, world_size: int, folder: str) -> dict[str, list[float]]:
    """Saved by torch.distributed.checkpoint on two ranks and continued there and on four: how far from one process."""
    found = {}
    for name in MAIN:
        make, part = OPTIMIZERS[name], share("fsdp", rank, world_size)
        model, twin = sharded("fsdp", world_size), Net()
        mine, its = make(model), make(twin)
        if world_size == 2:
            [*losses(model, mine, range(2), part)]
            dcp.save(state_of(model, mine), checkpoint_id=f"{folder}/{name}")
            model, mine = (fresh := sharded("fsdp", world_size)), make(fresh)
        state = state_of(model, mine)
        dcp.load(state, checkpoint_id=f"{folder}/{name}")
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, mine, state["optimizer"])
        [*losses(model, mine, range(2, 4), part)]
        [*losses(twin, its, range(4))]
        found[f"continued: {name}"] = [farthest(model, twin)]
    return found


def state_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def on_a_mesh_of_one(rank: int) -> float:
    """Each rank a stage of a pipeline: a mesh of its own, on which it steps without the other."""
    meshes = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stage", "data"))
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2 + rank), nn.Linear(3, 2 + rank)
    twin.load_state_dict(model.state_dict())
    fully_shard(model, mesh=meshes["data"])
    for one in (model, twin):
        one(torch.ones(1, 3)).sum().backward()
        LARS(one.parameters(), 0.5).step()
    return farthest(model, twin)


@needs_fsdp
@pytest.mark.slow
def test_a_step_of_dtensors_is_that_of_whole_tensors_in_one_process(tmp_path: Path) -> None:
    for world_size in KINDS:
        here = tmp_path / str(world_size)
        here.mkdir()
        for told in on_ranks(stepped, world_size, here, str(tmp_path)):
            assert {name: found for name, found in told.items() if found[0] > 1e-6} == {}
            stepped_once = {name: found for name, found in told.items() if len(found) > 1}
            assert len(stepped_once) >= len(MAIN) * len(KINDS[world_size])
            assert {name: found for name, found in stepped_once.items() if found[1] > 1e-5} == {}
            # Two gradients of the norm, terms of a sum under tensor parallelism alone, are added up besides.
            calls = {name: 3 if name.startswith("tp") else 1 for name in stepped_once}
            assert {name: found[2] for name, found in stepped_once.items()} == calls


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # torch 2.6, of every mesh of CPUs
@pytest.mark.parametrize("make", [LARS, TVLARS, LAMB, NLAMB])
def test_the_state_of_a_dtensor_is_placed_as_it_is(mesh_of_one: Any, make: Any) -> None:
    mesh = mesh_of_one
    p = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Replicate()]))
    p.grad = distribute_tensor(torch.ones(3, 2), mesh, [Replicate()])
    optimizer = make([p], 0.1)
    optimizer.step()
    state = optimizer.state[p].values()
    assert state
    assert all(isinstance(tensor, DTensor) and tensor.placements == p.placements for tensor in state)
    whole = make([nn.Parameter(torch.ones(3, 2))], 0.1)
    whole.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    whole.step()
    before = p.full_tensor().clone()
    optimizer.load_state_dict(whole.state_dict())
    with pytest.raises(
        RuntimeError, match=r"state of group 0, parameter 0 isn't sharded .*torch.distributed.checkpoint"
    ):
        optimizer.step()
    assert torch.equal(p.full_tensor(), before)
