"""Optimizers are taken out of what only wraps them, or refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from tests.optimizers.wrapping import wrapped
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.given import has_hooks, inner_of, optimizers_in, unwrapped


def sgd(count: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2)) for _ in range(count)], lr=0.1)


def of_class(path: str, **held: Any) -> Any:
    """An optimizer of a class with that full name, whose constructor never calls its parent's."""
    module, _, name = path.rpartition(".")
    made = type(name, (Optimizer,), {"__module__": module, "__init__": lambda self: None})()
    vars(made).update(held)
    return made


@pytest.mark.parametrize(
    "path",
    [
        "lightning.pytorch.core.optimizer.LightningOptimizer",
        "pytorch_lightning.core.optimizer.LightningOptimizer",
        "lightning.fabric.wrappers._FabricOptimizer",
    ],
)
def test_wrappers_that_only_delegate_are_taken_off_also_one_in_another(path: str) -> None:
    inner = sgd()
    assert unwrapped(of_class(path, _optimizer=inner)) is inner
    assert optimizers_in([wrapped(of_class(path, _optimizer=inner))]) == [inner]


def test_the_optimizers_in_a_container_stand_for_it() -> None:
    class Container(Optimizer):
        def __init__(self, held: Any) -> None:
            super().__init__([torch.zeros(1)], {"lr": 0.5})
            self.held = held

    first, second, third = sgd(), sgd(), sgd()
    assert optimizers_in(Container({"a": first, "b": second})) == [first, second]
    assert optimizers_in([Container([wrapped(first), Container((second,))]), third]) == [first, second, third]
    empty = Container([])
    assert optimizers_in(empty) == [empty]


class Own(Optimizer):
    """Steps parameters of its own, and holds optimizers."""

    def __init__(self, params: Any, **held: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        vars(self).update(held)


def test_optimizers_beside_parameters_of_its_own_stand_beside_it() -> None:
    model = torch.nn.Linear(2, 2)
    inner = torch.optim.SGD([model.bias])
    for held in (inner, [inner], {"a": inner}):
        outer = Own([model.weight], held=held)
        assert optimizers_in(outer, model) == [outer, inner]
    # Copies of its parameters, in another precision, are none of the model's.
    masters = torch.optim.SGD([p.detach().double().requires_grad_() for p in model.parameters()])
    mixed = Own(model.parameters(), masters=masters)
    assert optimizers_in(mixed, model) == optimizers_in(mixed) == [mixed]
    both = torch.optim.SGD([model.weight]), torch.optim.SGD([model.bias])
    assert optimizers_in(Own(model.parameters(), several=[*both]), model) == [*both]
    whole = Own(model.parameters(), part=[both[0]])
    assert optimizers_in(whole, model) == [whole]


def test_parameters_that_are_stepped_both_ways_are_refused() -> None:
    one, two, three = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    with pytest.raises(UserError, match="Own steps some parameters itself and others by optimizers that it holds"):
        optimizers_in(Own([one, two], several=[torch.optim.SGD([two, three])]))


@pytest.mark.parametrize(
    "path",
    [
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
        "deepspeed.runtime.bf16_optimizer.BF16_Optimizer",
        "fairscale.optim.oss.OSS",
        "torch.distributed.optim.post_localSGD_optimizer.PostLocalSGDOptimizer",
    ],
)
def test_optimizers_that_no_rank_sees_whole_are_refused_by_name(path: str) -> None:
    for given in (of_class(path), wrapped(of_class(path)), [sgd(), of_class(path)]):
        with pytest.raises(UserError, match=f"{path.rpartition('.')[2]} .*DistributedDataParallel"):
            optimizers_in(given)


def test_what_steps_inside_ddps_communication_is_refused() -> None:
    with pytest.raises(UserError, match="overlap_with_ddp"):
        optimizers_in(of_class("mine.Zero", _overlap_with_ddp=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "got NoneType"),
        ([], "got none"),
        ([SimpleNamespace(optimizer=1)], "got SimpleNamespace"),
        (of_class("accelerate.optimizer.AcceleratedOptimizer"), "got NoneType"),
        (of_class("mine.Deaf"), "Deaf has no param_groups"),
    ],
    ids=["none", "no optimizer", "another object", "a wrapper of nothing", "no groups"],
)
def test_what_is_no_optimizer_is_refused(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        optimizers_in(given)


def test_hooks_are_there_only_where_torch_has_made_the_optimizer() -> None:
    inner = sgd()
    assert has_hooks(inner)
    assert not has_hooks(of_class("mine.Wrapper", optimizer=inner))
    hookless = of_class("mine.Wrapper", _optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
    assert not has_hooks(hookless)  # timm's Lookahead has the dicts, which nobody calls


def test_an_inner_optimizer_is_known_by_being_the_only_one() -> None:
    inner = sgd()
    assert inner_of(of_class("mine.Wrapper", base=inner, alias=inner)) is inner
    assert inner_of(of_class("mine.Wrapper", fast=inner, slow=sgd())) is None
    assert inner_of(inner) is None
