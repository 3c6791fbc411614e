"""Tensors that can't be read are refused by name, wherever a model or an optimizer comes in."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

import tvlars_probe
from tests.ranked import on_ranks
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


DATA = torch.ones(2, 4), torch.ones(2, 2)
ENTRANCES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "record": lambda model, run: tvlars_probe.record(model, sgd(model), run),
    "record of no model": lambda model, run: tvlars_probe.record(None, sgd(model), run),
    "describe": lambda model, _: tvlars_probe.describe(sgd(model)),
    "LARS": lambda model, _: tvlars_probe.LARS(model.parameters(), 0.1),
    "LAMB": lambda model, _: tvlars_probe.LAMB(model.parameters(), 0.1),
}
"""Where DTensors are taken."""

OF_WHOLE_TENSORS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "applied_rates": lambda model, _: tvlars_probe.applied_rates(model, sgd(model)),
    "sharpness": lambda model, _: tvlars_probe.sharpness(model, nn.functional.mse_loss, DATA),
    "SharpnessProbe": lambda model, _: tvlars_probe.SharpnessProbe(model, nn.functional.mse_loss, DATA),
}
"""Where they aren't."""


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # torch 2.6, of every mesh of CPUs
@pytest.mark.parametrize("enter", OF_WHOLE_TENSORS.values(), ids=OF_WHOLE_TENSORS)
@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=["shard", "replicate"])
def test_a_dtensor_is_refused_where_whole_tensors_are_needed(
    tmp_path: Path, mesh_of_one: Any, placement: Any, enter: Callable[[nn.Module, Path], Any]
) -> None:
    model = net()
    model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh_of_one, [placement]))
    with pytest.raises(UserError, match=r"is a DTensor, .* spread over ranks.*DistributedDataParallel"):
        enter(model, tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)
def test_a_dtensor_whose_terms_are_not_added_up_is_refused(
    tmp_path: Path, mesh_of_one: Any, enter: Callable[[nn.Module, Path], Any]
) -> None:
    model = net()
    terms = DTensor.from_local(model[1].weight.detach(), mesh_of_one, [Partial()])
    model[1].weight = nn.Parameter(terms)
    with pytest.raises(UserError, match=r"DTensor of terms that aren't added up yet \(Partial\), .*fully_shard"):
        enter(model, tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)
def test_a_shard_with_a_mark_of_another_package_is_refused(
    tmp_path: Path, mesh_of_one: Any, enter: Callable[[nn.Module, Path], Any]
) -> None:
    model = net()
    model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh_of_one, [Shard(0)]))
    zero(model[1].weight)
    with pytest.raises(UserError, match="is a parameter of DeepSpeed's ZeRO"):
        enter(model, tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


def flattened(p: nn.Parameter) -> nn.Parameter:
    p._fsdp_flattened = True  # type: ignore[attr-defined]
    return p


def zero(p: nn.Parameter) -> nn.Parameter:
    p.ds_id = 0  # type: ignore[attr-defined]
    return p


def megatron(p: nn.Parameter) -> nn.Parameter:
    p.tensor_model_parallel = True  # type: ignore[attr-defined]
    return p


class FlatParameter(nn.Parameter):
    """Named as FSDP1's."""


KINDS: dict[str, tuple[Callable[[nn.Parameter], Any], str]] = {
    "FSDP1": (flattened, "1.weight is flattened by FSDP1"),
    "a FlatParameter": (lambda p: FlatParameter(p.detach()), "1.weight is part of a FlatParameter of FSDP1"),
    "ZeRO-3": (zero, "1.weight is a parameter of DeepSpeed's ZeRO"),
    "Megatron": (megatron, "1.weight is a shard of Megatron's"),
    "meta": (lambda p: nn.Parameter(p.detach().to("meta")), "1.weight is on the meta device and holds no numbers"),
    "lazy": (lambda _: nn.UninitializedParameter(), "1.weight has no shape yet: pass a batch"),
    "CSR": (lambda p: nn.Parameter(p.detach().to_sparse_csr()), "1.weight is a sparse_csr tensor"),
    "nested": (
        lambda p: nn.Parameter(torch.nested.nested_tensor(list(p.detach()), layout=torch.jagged)),
        "1.weight is a nested tensor",
    ),
    "a subclass of its own storage": (
        lambda p: nn.Parameter(TwoTensor(p.detach(), p.detach())),
        "1.weight is a TwoTensor, whose elements only its own class can read",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize(("make", "told"), KINDS.values(), ids=KINDS)
def test_tensors_that_cannot_be_read_are_named_before_a_folder_is_made(
    tmp_path: Path, make: Callable[[nn.Parameter], Any], told: str
) -> None:
    model = net()
    model[1].weight = make(model[1].weight)
    with pytest.raises(UserError, match=told):
        tvlars_probe.record(model, sgd(model), tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "DeepSpeedEngine", "ShardedDataParallel"])
def test_a_model_in_a_module_that_spreads_it_is_refused(tmp_path: Path, name: str) -> None:
    inner = net()
    model = nn.Sequential(type(name, (nn.Sequential,), {})(inner))
    with pytest.raises(UserError, match="its 0 is spread over ranks by"):
        tvlars_probe.record(model, sgd(model), tmp_path / "run")
    with pytest.raises(UserError, match="its 0 is spread over ranks by"):
        tvlars_probe.sharpness(model, nn.functional.mse_loss, DATA)


def test_frozen_tensors_of_another_kind_and_marks_that_say_no_are_let_in(tmp_path: Path) -> None:
    model = net()
    whole = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(whole, whole), requires_grad=False)
    model[1].weight.tensor_model_parallel = False  # type: ignore[assignment]
    with tvlars_probe.record(model, sgd(model), tmp_path / "run"):
        pass
    assert tvlars_probe.open_run(tmp_path / "run").status == "completed"


def test_a_parameter_that_is_spread_later_ends_the_layers_and_not_the_training(tmp_path: Path) -> None:
    model = net()
    optimizer = sgd(model)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        for step in range(4):
            model(torch.ones(2, 4)).sum().backward()
            if step == 2:
                flattened(model[0].weight)
            optimizer.step()
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                rec.log(loss=1.0)
            assert [str(one.message).count("has become flattened by FSDP1") for one in told] == [1] * (step == 2)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert {*run.layers()["step"]} == {0, 1}
    assert len(run.steps()) == 4


def test_our_optimizers_refuse_a_parameter_that_is_spread_later() -> None:
    model = net()
    optimizer = tvlars_probe.LARS(model.parameters(), 0.1)
    model(torch.ones(2, 4)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    flattened(model[1].bias)
    with pytest.raises(RuntimeError, match="group 0, parameter 3 is flattened by FSDP1"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def refused_on_one(rank: int, _: int, folder: str, what: str) -> str:
    model = net() if what != "stages" or rank else nn.Sequential(nn.Linear(4, 2))
    if what == "one spread" and rank:
        zero(model[1].weight)
    optimizer = sgd(model)
    if what == "one empty" and rank:
        optimizer.param_groups[0]["params"] = []
    try:
        if what == "a probe":
            zero(model[1].weight) if rank else None
            tvlars_probe.SharpnessProbe(model, nn.functional.mse_loss, DATA)
        else:
            with tvlars_probe.record(model, optimizer, f"{folder}/run"):
                pass
    except UserError as error:
        return str(error)
    return "nothing"


TOLD = {
    "one spread": "1.weight is a parameter of DeepSpeed's ZeRO",
    "one empty": "SGD holds no parameter",
    "stages": "the ranks hold unlike parameters",
    "a probe": "1.weight is a parameter of DeepSpeed's ZeRO",
}


def refused_on_one_of_all(rank: int, size: int, folder: str) -> dict[str, str]:
    return {what: refused_on_one(rank, size, folder, what) for what in TOLD}


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse_by_name(tmp_path: Path) -> None:
    """No rank waits for one that was refused."""
    here = tmp_path / "ranks"
    here.mkdir()
    first, second = on_ranks(refused_on_one_of_all, 2, here, str(tmp_path))
    for what, told in TOLD.items():
        assert told in first[what]
        assert told in second[what]
        assert ("rank 1" in first[what]) is (what != "stages")
    assert not (tmp_path / "run").exists()
