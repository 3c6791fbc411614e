"""An optimizer that can be made anew on any tensors, and how it is tried on small ones."""

from __future__ import annotations

import inspect
import os
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tvlars_probe.diagnosis.results import Observed
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.combined import CombinedOptimizer
from tvlars_probe.optimizers.given import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Shapes = tuple[tuple[int, ...], ...]
    Gradients = Callable[[int], Sequence[Tensor]]

OF_A_NETWORK: Shapes = ((6, 5), (4, 3, 2, 2), (5,), ())
"""Shapes of the tensors on which an optimizer is tried."""

MATRICES: Shapes = ((6, 5), (5, 6), (4, 4))
"""Those on which one is tried that takes no others."""


HORIZON = 2000
"""Steps in which a factor may die or overflow, by default."""


class NotTriedError(Exception):
    """Something can't be tried with an optimizer, and says nothing about it."""


@dataclass(frozen=True)
class TriedOptimizer:
    """An optimizer with its settings, and what the first trials of it showed (see `fitting`).

    Attributes:
        name: name of its class.
        build: makes it of parameters or parameter groups.
        shapes: the tensors on which it is tried.
        left_out: why these are matrices alone; None where they aren't.
        refusal: why nothing can be tried; None where something can.
        fault: what a plain step raises that should raise nothing; None where it does.
        horizon: steps that a factor has in which to die or to overflow.
        seed: where torch's random numbers begin for each optimizer that is made.
    """

    name: str
    build: Callable[[Any], Optimizer]
    shapes: Shapes = OF_A_NETWORK
    left_out: str | None = None
    refusal: str | None = None
    fault: str | None = None
    horizon: int = HORIZON
    seed: int = 0

    def made(self, groups: Sequence[Sequence[Tensor]], *settings: Mapping[str, Any]) -> Optimizer:
        """A new one.

        Args:
            groups: the parameters of each group.
            settings: settings of each group; of the groups for which none are given, the defaults.

        Raises:
            NotTriedError: nothing can be tried with it.
        """
        if self.refusal is not None:
            raise NotTriedError(self.refusal)
        # Of the CPU alone: `torch.manual_seed` would change the caller's random numbers on other devices.
        torch.default_generator.manual_seed(self.seed)
        given = [*settings, *[{}] * len(groups)]
        optimizer = self.build([{"params": [*ps], **given[k]} for k, ps in enumerate(groups)])
        if hasattr(optimizer, "train"):  # Schedule-Free steps only after this call
            optimizer.train()
        return optimizer

    def must_move(self) -> None:
        """Pass over one whose rate is zero, so that no tensor moves.

        Raises:
            NotTriedError: it is.
        """
        if self.defaults().get("lr") == 0:
            raise NotTriedError("its lr is 0")

    def defaults(self) -> Mapping[str, Any]:
        """The settings of a group for which none are given."""
        (group,) = self.made([weights(self.shapes)]).param_groups
        return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def subject_of(given: Any, settings: Mapping[str, Any] | None = None) -> TriedOptimizer:
    """The optimizer that somebody gives, in a form that can be tried.

    Args:
        given: an optimizer, whose class and settings are taken and which is left as it is; a class; or a function that
            makes an optimizer of parameters.
        settings: arguments of a class's constructor. ``lr`` is 0.1 where the constructor asks for one and none is told.

    Raises:
        UserError: it is none of these, or the class doesn't take these settings.
    """
    if isinstance(given, type):
        if not issubclass(given, Optimizer):
            raise UserError(f"{given.__name__} is no optimizer: give a subclass of torch.optim.Optimizer")
        if inspect.unwrap(given.step) is inspect.unwrap(Optimizer.step):
            raise UserError(f"{given.__name__} has no step of its own: it's a base class; give one that is made of it")
        return _of_class(given, dict(settings or {}))
    if settings:
        raise UserError(
            f"settings ({', '.join(settings)}) are for a class: an optimizer, or a function that makes one, has its own"
        )
    inner = unwrapped(given) if not inspect.isroutine(given) else given
    if isinstance(inner, CombinedOptimizer):
        raise UserError("several optimizers are combined here: give each of its .optimizers by itself")
    if isinstance(inner, Optimizer):
        return _of_class(type(inner), _settings_of(inner))
    if callable(given):
        return TriedOptimizer(getattr(given, "__name__", type(given).__name__), _checked(given))
    remedy = "give a torch.optim.Optimizer, its class, or a function that makes one"
    if isinstance(given, str | os.PathLike):
        remedy += f"; of a run the command tells: tvlars-probe doctor {shlex.quote(os.fspath(given))}"
    raise UserError(f"{type(given).__name__} is no optimizer: {remedy}")


def _of_class(kind: type[Optimizer], settings: dict[str, Any]) -> TriedOptimizer:
    parameters = [*inspect.signature(kind.__init__).parameters.values()][2:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    unknown = [] if takes_any else sorted(settings.keys() - named.keys())
    if unknown:
        raise UserError(f"{kind.__name__} takes no {', '.join(unknown)} (it takes {', '.join(named)})")
    required = [name for name, p in named.items() if p.default is p.empty and name not in settings]
    if "lr" in required:
        required.remove("lr")
        settings = {"lr": 0.1, **settings}
    if required:
        raise UserError(
            f"{kind.__name__} can't be made without {', '.join(required)}: give --set {required[0]}=VALUE, or in "
            f"Python a function, tvlars_probe.doctor(lambda params: {kind.__name__}(params, ...))"
        )
    return TriedOptimizer(kind.__name__, lambda params: kind(params, **settings))


def _settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """The arguments that would make an optimizer like this one, as far as it tells them."""
    told = {**vars(optimizer), **optimizer.defaults, **optimizer.param_groups[0]}
    names = [*inspect.signature(type(optimizer).__init__).parameters][2:]
    settings = {name: told[name] for name in names if name in told}
    lr = settings.get("lr")
    return {**settings, "lr": float(lr)} if isinstance(lr, Tensor) else settings


def _checked(build: Callable[[Any], Any]) -> Callable[[Any], Optimizer]:
    def checked(params: Any) -> Optimizer:
        made = unwrapped(build(params))
        if not isinstance(made, Optimizer):
            raise UserError(f"the function returned {type(made).__name__}, which is no torch.optim.Optimizer")
        return made

    return checked


def told(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def weights(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.float64, seed: int = 1) -> list[nn.Parameter]:
    """Parameters of these shapes with elements of about 1; the same in each precision, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def drawn(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.float64, *, cycle: int = 8) -> Gradients:
    """Gradients of these shapes with elements of about 1, others in each step; after ``cycle`` steps they return."""
    kept = [weights(shapes, dtype, seed=100 + k) for k in range(cycle)]
    return lambda step: [p.detach() for p in kept[step % cycle]]


def updates(
    optimizer: Optimizer, params: Sequence[nn.Parameter], gradients: Gradients, steps: int, *, first: int = 0,
    holds: bool = False,
) -> list[list[Tensor]]:  # fmt: skip
    """Make steps, and return what each added to each tensor.

    Args:
        optimizer: the optimizer of ``params``.
        params: the parameters.
        gradients: those of a step.
        steps: how many.
        first: number of the first step.
        holds: whether the weights are put back after each step, so that nothing but the optimizer's own state changes.
    """
    made = []
    for step in range(first, first + steps):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.clone()
        optimizer.step()
        made.append([p.detach() - b for p, b in zip(params, before, strict=True)])
        if holds:
            with torch.no_grad():
                for p, b in zip(params, before, strict=True):
                    p.copy_(b)
    return made


def refuse_random(subject: TriedOptimizer, dtype: torch.dtype, *, seed: int) -> None:
    """Pass over an optimizer of which two like runs differ, where a difference between others says nothing.

    Args:
        subject: the optimizer.
        dtype: the precision.
        seed: where torch's random numbers begin in the second run. The subject's own finds what is random in spite of
            it; another one finds all that is random, for runs that may draw in another order.

    Raises:
        NotTriedError: they differ.
    """
    runs = []
    for one in (subject, replace(subject, seed=seed)):
        params = weights(subject.shapes, dtype)
        runs.append(updates(one.made([params]), params, drawn(subject.shapes, dtype), 8))
    if not same(*runs):
        raise NotTriedError("its updates are random")


def norms(made: Sequence[Sequence[Tensor]]) -> Tensor:
    """The norm of each update, (steps, tensors), in float64."""
    return torch.stack([torch.stack([u.double().norm() for u in step]) for step in made])


def unmoved(dtype: torch.dtype, came: str) -> Observed:
    """What it means that a tensor doesn't move: in single precision a step may be too small for the weight's digits."""
    return Observed("wrong" if dtype == torch.float64 else "can't tell", came)


def same(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    """Whether two series of updates are equal bit for bit."""
    return all(torch.equal(a, b) for s, t in zip(one, other, strict=True) for a, b in zip(s, t, strict=True))


def distance(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> float:
    """The largest difference of two series of updates, relative to the largest element of the tensor's update."""
    worst = 0.0
    for s, t in zip(one, other, strict=True):
        for a, b in zip(s, t, strict=True):
            size = a.abs().max().item()
            off = (a - b).abs().max().item()
            worst = max(worst, off / size if size else off)
    return worst
