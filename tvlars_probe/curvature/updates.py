"""An update Δw of the weights, made or coming, and the model at other weights along it."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.errors import UserError
from tvlars_probe.shards import shard_of
from tvlars_probe.whole_tensors import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.optim import Optimizer

    from tvlars_probe.curvature.objective import Objective


@dataclass(frozen=True)
class Update:
    """An update of the weights.

    Attributes:
        changes: Δw by parameter; of a DTensor this rank's shard.
        lr: learning rate of the optimizer's first parameter group in it.
    """

    changes: Mapping[str, Tensor]
    lr: float


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by name, of DTensors this rank's shards."""
    return {name: shard_of(p.detach()).clone() for name, p in parameters.items()}


def update_since(before: Mapping[str, Tensor], parameters: Mapping[str, Tensor], lr: float) -> Update:
    """The update made since `copies` were taken; a parameter that is gone has none."""
    now = {name: shard_of(p.detach()) for name, p in parameters.items()}
    return Update({name: now[name] - w for name, w in before.items() if name in now}, lr)


@contextlib.contextmanager
def at_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other weights, `copies` of earlier ones, and put theirs back at the end, bit for bit.

    Ordinary tensors get their own memory back. The shards of DTensors are overwritten, and written back: FSDP gathers
    from that memory.
    """
    with contextlib.ExitStack() as stack:
        for name, w in weights.items():
            p = parameters[name]
            # A graph that has saved p refuses a backward pass after p's version has moved on.
            stack.enter_context(torch.autograd.grad_mode._unsafe_preserve_version_counter(p))
            if is_dtensor(p):
                shard = shard_of(p.detach())
                stack.callback(shard.copy_, shard.clone())
                shard.copy_(w)
            else:
                stack.callback(setattr, p, "data", p.data)
                p.data = w
        yield


class Displaced:
    """f(w + c·Δw) by forward passes alone; it is made inside ``objective.held()``.

    Attributes:
        evaluations: number of evaluations so far.
    """

    def __init__(self, objective: Objective, parameters: Mapping[str, Tensor], update: Update) -> None:
        self.objective, self.evaluations = objective, 0
        moving = {name: p for name, p in parameters.items() if name in update.changes}
        self._shards = [shard_of(p.data) for p in moving.values()]
        self._origin = [shard.clone() for shard in self._shards]
        self._changes = [update.changes[name].to(self._origin[i]) for i, name in enumerate(moving)]

    def loss_here(self) -> float:
        """f(w), where the weights are."""
        self.evaluations += 1
        return self.objective.value()

    def loss_at(self, c: float) -> float:
        """f(w + c·Δw), the same on every rank; it may be NaN or infinite. The weights are put back."""
        self.evaluations += 1
        try:
            for shard, origin, change in zip(self._shards, self._origin, self._changes, strict=True):
                torch.add(origin, change, alpha=c, out=shard)
            return self.objective.value()
        finally:
            for shard, origin in zip(self._shards, self._origin, strict=True):
                shard.copy_(origin)


def coming_update(objective: Objective, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> Update:
    """The update that an optimizer would make from the gradient of f at the model's weights.

    Copies of the optimizer and of its parameters make it: nothing of the caller's changes.

    Args:
        objective: f; its gradient is computed as it is held.
        parameters: by name; those that the optimizer updates take part.
        optimizer: in the state from which it would go on.

    Raises:
        UserError: the optimizer can't be copied, or can't step without a closure, or updates none of the parameters.
    """
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    moving = {name: p for name, p in parameters.items() if p.requires_grad and id(p) in taken}
    if not moving:
        raise UserError("the optimizer given updates none of the parameters that are measured")
    twins = {name: p.detach().clone().requires_grad_() for name, p in moving.items()}
    with objective.held():
        gradients = _gradient(objective, moving)
    memo = {id(moving[name]): twin for name, twin in twins.items()}
    try:
        # torch's own copy: without hooks, of which a recorder's would record this step.
        twin = copy.deepcopy(optimizer, memo)
    except Exception as error:
        raise UserError(f"{type(optimizer).__name__} can't be copied, to see its coming update: {error}") from error
    for name, p in twins.items():
        p.grad = gradients[name]
    lr = float(optimizer.param_groups[0]["lr"])
    try:
        twin.step()
    except TypeError as error:  # a closure is missing: LBFGS and its like compute gradients at other weights, too
        raise UserError(
            f"{type(optimizer).__name__} doesn't step by a gradient alone ({error}), so that its coming update can't "
            "be seen: directional and critical sharpness take an optimizer whose step() needs no closure"
        ) from error
    return update_since({name: moving[name].detach() for name in twins}, twins, lr)


def _gradient(objective: Objective, parameters: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """∇f by parameter; None where f doesn't depend on it on any rank."""
    params = list(parameters.values())
    total: list[Tensor | None] = [None] * len(params)
    for index in range(len(objective.batches)):
        found = torch.autograd.grad(objective.term(index), params, allow_unused=True)
        total = [b if a is None else a if b is None else a + b for a, b in zip(total, found, strict=True)]
    shards = objective.shards
    used = shards.sum(torch.tensor([float(g is not None) for g in total], device=objective.device)).tolist()
    whole = [
        shards.sum(torch.zeros_like(p) if g is None else g.contiguous()) if is_used else None
        for p, g, is_used in zip(params, total, used, strict=True)
    ]
    return dict(zip(parameters, whole, strict=True))
