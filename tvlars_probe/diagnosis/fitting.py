"""Which tensors an optimizer takes, what a plain step of it raises, and whether it asks for another kind of step."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tvlars_probe.diagnosis.subject import MATRICES, OF_A_NETWORK, drawn, told, updates, weights
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.diagnosis.subject import Shapes, TriedOptimizer

_LACKING = re.compile(r"support|not (yet )?implemented|\b(cuda|gpu|nvidia|triton)\b|process group", re.IGNORECASE)
"""What an error says where something is refused, or isn't there: a kind of tensor, a device, a group of ranks."""

_OF_SHAPES = re.compile(r"\b[2-9]-?d\b|two-dimensional|\bmatri", re.IGNORECASE)
"""What an error says where tensors of some shapes are refused."""


def refuses(error: Exception) -> bool:
    """Whether an error tells a caller that something isn't taken or isn't there. All other errors are crashes."""
    if isinstance(error, NotImplementedError | ImportError):
        return True
    # torch's own kernels speak of matrices and dimensions, too: by RuntimeError, which is a crash.
    if isinstance(error, ValueError | TypeError | AssertionError) and _OF_SHAPES.search(str(error)):
        return True
    spoken = isinstance(error, ValueError | TypeError | AssertionError | RuntimeError)
    return spoken and _LACKING.search(str(error)) is not None


@dataclass(frozen=True)
class _Failure:
    """What came of a trial that failed.

    Attributes:
        error: what was raised.
        is_made: whether the optimizer could be made, so that its step raised.
    """

    error: Exception
    is_made: bool

    @property
    def verb(self) -> str:
        return "a step on" if self.is_made else "making it of"


def fitted(subject: TriedOptimizer) -> TriedOptimizer:
    """The subject with the shapes that it takes, or with the reason why nothing can be tried; and what its steps raise.

    Raises:
        UserError: it can't be made at all.
    """
    whole = _failure(subject, OF_A_NETWORK)
    if whole is None:
        return subject
    of_matrices = _failure(subject, MATRICES)
    if of_matrices is None:
        if refuses(whole.error):
            return replace(subject, shapes=MATRICES, left_out=f"it takes matrices alone: {told(whole.error)}")
        fault = f"{whole.verb} {_culprits(subject)} raises {told(whole.error)}"
        return replace(subject, shapes=MATRICES, left_out="it can be tried on matrices alone", fault=fault)
    made = next((one for one in (whole, of_matrices) if one.is_made), None)
    if made is None:
        raise UserError(
            f"{subject.name}: it can't be made: {told(whole.error)} (settings are given by --set NAME=VALUE)"
        )
    needs = _needs(subject, OF_A_NETWORK if whole.is_made else MATRICES)
    if needs is not None:
        return replace(subject, refusal=f"its step needs {needs}: {told(made.error)}")
    raised = f"its step raises {told(made.error)}"
    if refuses(made.error):
        return replace(subject, refusal=raised)
    if _failure(subject, OF_A_NETWORK, torch.float32) is None:
        raised = f"in float64, but not in float32, {raised}"
    return replace(subject, refusal=raised, fault=raised)


def _failure(subject: TriedOptimizer, shapes: Shapes, dtype: torch.dtype = torch.float64) -> _Failure | None:
    """What comes of making the subject and of two plain steps; None where they succeed.

    Raises:
        UserError: what was given makes no optimizer.
    """
    params = weights(shapes, dtype)
    try:
        optimizer = subject.made([params])
    except UserError:
        raise
    except Exception as error:  # a stranger's constructor may raise anything
        return _Failure(error, is_made=False)
    try:
        updates(optimizer, params, drawn(shapes, dtype), 2)
    except Exception as error:  # and so may its step
        return _Failure(error, is_made=True)
    return None


def _culprits(subject: TriedOptimizer) -> str:
    """The shapes on which the subject fails, each tried alone."""
    shapes = [shape for shape in OF_A_NETWORK if _failure(subject, (shape,)) is not None]
    return f"{'a tensor' if len(shapes) == 1 else 'tensors'} of {_named(shapes or OF_A_NETWORK)}"


def _named(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"shape{'' if len(shapes) == 1 else 's'} {' and '.join(map(str, shapes))}"


def _needs(subject: TriedOptimizer, shapes: Shapes) -> str | None:
    """What a step needs that a plain one hasn't: found by giving it; None where nothing of this helps."""
    required = _required(subject.made([weights(shapes)]).step)
    if required:
        return "a closure" if required == ["closure"] else f"the argument {' and '.join(required)}"
    return next((name for name, step in _WAYS.items() if _moves(subject, shapes, step)), None)


def _required(step: Callable[..., object]) -> list[str]:
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):  # it has none that can be read
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def _moves(subject: TriedOptimizer, shapes: Shapes, step: Callable[[Optimizer, list[nn.Parameter]], None]) -> bool:
    params, start = weights(shapes), weights(shapes)
    try:
        optimizer = subject.made([params])
        for _ in range(2):
            step(optimizer, params)
    except Exception:  # it isn't this that it needs
        return False
    return any(not torch.equal(p, s) for p, s in zip(params, start, strict=True))


def _loss(params: list[nn.Parameter], *, graph: bool = False) -> float:
    """Half the sum of squares, with its gradients left in the parameters."""
    with torch.enable_grad():
        loss = torch.stack([p.square().sum() for p in params]).sum() / 2
        found = torch.autograd.grad(loss, params, create_graph=graph)
    for p, g in zip(params, found, strict=True):
        p.grad = g
    return loss.item()


def _by_closure(optimizer: Optimizer, params: list[nn.Parameter]) -> None:
    _loss(params)
    optimizer.step(lambda: _loss(params))


def _by_graph(optimizer: Optimizer, params: list[nn.Parameter]) -> None:
    _loss(params, graph=True)
    optimizer.step()
    for p in params:
        p.grad = None  # gradient and graph hold each other


def _by_sparse(optimizer: Optimizer, params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = p.detach().to_sparse()
    optimizer.step()


_WAYS = {
    "a closure": _by_closure,
    "sparse gradients": _by_sparse,
    "gradients that have a graph": _by_graph,
}
"""Steps that some optimizers make alone, by what such a one needs."""
