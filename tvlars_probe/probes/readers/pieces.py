"""The gradients of a step's pieces: what each backward pass adds to the gradient, before it is accumulated or reduced.

A piece is what one backward pass of one rank is made of: a micro-batch, or the rank's share of the batch. A hook on
each parameter sees the piece's gradient before it is added to ``.grad``, and before DistributedDataParallel reduces it
over the ranks. Of each only two numbers are kept, and the host waits for neither: the squared norm, and a check sum,
from which the flush learns how the gradient that ``step()`` used was made from them
(`tvlars_probe.probes.rows.noise`).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.probes.readers.batch_sizes import samples_in
from tvlars_probe.probes.readers.gradient_figures import GradientFigures
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.uncompiled import uncompiled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    Number = float | Tensor

COUNTS = ("pieces", "weight", "weight_by_size", "square_weight_by_size", "size", "of_tokens")
"""What is known of an optimizer's pieces, each a sum over them: 1, w, w/n, w²/n, n, and 1 where n counts tokens.

n is a piece's size and w its weight in the step's gradient, up to a common factor.
"""

FLAGS = ("unclear", "excess", "guessed", "weighted")
"""What tells whether an optimizer's pieces can be compared, each 0 or 1.

"unclear": their sizes differ and no weights were told. "excess": there were fewer forward passes than backward passes,
so that not each is a piece of the batch. "guessed": sizes are the first dimension of what the model was given.
"weighted": all weights were told; otherwise all ranks must have as many pieces.
"""

_ALIKE = 0.01
"""Sizes that differ by no more than this share count as one size."""


@dataclass(slots=True)
class _Piece:
    """One backward pass: per parameter of the optimizer its squared norm and its check sum; the size that was seen.

    A gradient that `torch.autograd.grad` returns is seen, too; only one that is added to ``.grad`` is ``accumulated``.
    ``passes`` are the model's forward passes since the backward pass before.
    """

    size: int | None
    passes: int
    squares: dict[int, Number] = field(default_factory=dict)
    sums: dict[int, Number] = field(default_factory=dict)
    accumulated: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Told:
    """What a loop tells of a piece.

    Attributes:
        size: number of samples or tokens.
        weight: weight of its gradient in the step's, up to a common factor; None where all pieces weigh the same.
        of_tokens: whether the size counts tokens.
    """

    size: Number
    weight: Number | None
    of_tokens: bool


@dataclass(frozen=True, slots=True)
class PieceSums:
    """What the pieces of one optimizer's update gave on this rank.

    Attributes:
        squares: Σ |h|²/w per parameter, h being what a piece added to the gradient.
        sums: Σ of the check sums per parameter.
        counts: the sums `COUNTS`; NaN for what isn't known.
        flags: `FLAGS`.
        number: of pieces.
    """

    squares: Tensor
    sums: Tensor
    counts: Tensor
    flags: tuple[bool, ...]
    number: int


class _ForwardHook:
    """The hook of the model's forward passes. A copy of the model, or its pickle, gets one that does nothing.

    Otherwise it would hold a copy of the reader, and with it of the optimizers.
    """

    def __init__(self, forward: Callable[..., None]) -> None:
        self._forward = forward

    def __call__(self, *args: Any) -> None:
        self._forward(*args)

    def __reduce__(self) -> Any:
        # Takes any arguments and returns None, and is there where this package isn't.
        return getattr, (contextlib.nullcontext(), "__exit__")


class PieceReader:
    """Watches the backward passes of a loop. It changes no gradient, and raises nothing in a backward pass.

    Args:
        model: whose forward passes tell sizes; None for no model.
        optimizers: whose parameters are watched.

    Attributes:
        is_on: whether gradients are read.
        error: what reading raised first; None where nothing did.
    """

    def __init__(self, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
        self._model, self._optimizers, self._pid = model, optimizers, os.getpid()
        self.is_on, self.error = True, None  # type: tuple[bool, Exception | None]
        self._handles: list[Any] = []
        self._hooked: set[int] = set()
        self._pieces: list[list[_Piece]] = [[] for _ in optimizers]
        self._told: list[list[Told]] = [[] for _ in optimizers]
        self._open: dict[int, _Piece] = {}
        self._passes: list[int | None] = []
        self._figures = GradientFigures()

    def attach(self) -> None:
        """Watch from now on; called again, parameters that have been unfrozen meanwhile are watched, too."""
        if self._model is not None and not self._handles:
            self._handles.append(self._model.register_forward_pre_hook(_ForwardHook(self._forward), with_kwargs=True))
        for index, optimizer in enumerate(self._optimizers):
            for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                if p.requires_grad and id(p) not in self._hooked:
                    self._hooked.add(id(p))
                    hook = partial(self._seen, index, place)
                    # torch warns of hooks when a tensor is pickled, unless they say that they may be lost.
                    hook.__torch_unserialize__ = True  # type: ignore[attr-defined]
                    self._handles.append(p.register_hook(hook))
                    added = partial(self._added, index, place)
                    self._handles.append(p.register_post_accumulate_grad_hook(added))

    def detach(self) -> None:
        """Watch no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()

    def tell(self, piece: Told) -> None:
        """Keep what the loop tells of a piece whose backward pass comes next, or has just been made."""
        for told in self._told:
            told.append(piece)

    @uncompiled
    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.is_on and module.training and torch.is_grad_enabled():
            self._drop_failed()
            if not self._passes and not any(self._pieces):
                self.attach()  # to what has been unfrozen since the last step
            self._passes.append(samples_in([*args, kwargs]))

    @uncompiled
    def _seen(self, index: int, place: int, grad: Tensor) -> None:
        """The hook of a parameter: it returns nothing, so that the gradient stays as it is."""
        if not self.is_on or os.getpid() != self._pid:
            return
        try:
            piece = self._open.get(index) or self._opened(index)
            if torch.is_grad_enabled():  # a backward pass with create_graph
                grad = grad.detach()
            piece.squares[place], piece.sums[place] = self._figures.square(grad), self._figures.check_sum(grad)
        except Exception as error:  # it would end a backward pass; the next step's row tells of it
            self.is_on, self.error = False, error

    @uncompiled
    def _added(self, index: int, place: int, _: Tensor) -> None:
        """The hook of a parameter whose gradient has been added to ``.grad``."""
        if index in self._open:
            self._open[index].accumulated.add(place)

    def _opened(self, index: int) -> _Piece:
        """The piece of the backward pass that is running."""
        if not self._open:  # the first parameter of this pass
            torch.autograd.Variable._execution_engine.queue_callback(self._pass_ends)
            # Several forward passes may be of one batch, or of several: then sizes are those that the loop tells.
            self._size = self._passes[0] if len(self._passes) == 1 else None
        self._open[index] = piece = _Piece(self._size, len(self._passes))
        return piece

    def _drop_failed(self) -> None:
        """Forget a backward pass that has raised: no callback told of its end."""
        if self._open and torch._C._current_graph_task_id() < 0:  # no backward pass is running
            self._open.clear()
            self._passes.clear()

    def _pass_ends(self) -> None:
        for index, piece in self._open.items():
            if piece.accumulated:
                for seen in {*piece.squares} - piece.accumulated:
                    del piece.squares[seen], piece.sums[seen]
                self._pieces[index].append(piece)
        self._open.clear()
        self._passes.clear()

    def take(self, index: int) -> PieceSums:
        """The pieces since optimizer ``index`` last took its own; they are forgotten.

        Raises:
            Exception: what reading has raised in a backward pass.
        """
        self._drop_failed()
        pieces, self._pieces[index] = self._pieces[index], []
        told, self._told[index] = self._told[index], []
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        told = told if len(told) == len(pieces) else [one for one in told if not _is_empty(one)]
        if len(told) == len(pieces):
            kept = [(piece, one) for piece, one in zip(pieces, told, strict=True) if not _is_empty(one)]
            pieces, told = [piece for piece, _ in kept], [one for _, one in kept]
        else:
            told = []  # not one for each piece: nothing says which is which
        return self._sums(index, pieces, told)

    def _sums(self, index: int, pieces: list[_Piece], told: list[Told]) -> PieceSums:
        params = [p for group in self._optimizers[index].param_groups for p in group["params"]]
        device, dtype = params[0].device, accumulation_dtype(params[0].device)
        seen = [piece.size for piece in pieces]
        sizes: list[Any] = [one.size for one in told] or seen
        weights: list[Any] = [1.0 if one.weight is None else one.weight for one in told] or [1.0] * len(pieces)
        known = all(size is not None for size in sizes)
        apart = [size for size in sizes if isinstance(size, int)]
        alike = not apart or max(apart) - min(apart) <= _ALIKE * max(apart)
        unclear = not alike and (not told or any(one.weight is None for one in told))
        unclear |= len({one.of_tokens for one in told}) > 1
        # Several losses of one forward pass, or a penalty with a backward pass of its own, aren't draws of samples.
        # Where no forward pass is seen at all, nothing is known of them.
        excess = 0 < sum(piece.passes for piece in pieces) < len(pieces)
        squares = torch.zeros(len(params), dtype=dtype, device=device)
        sums = torch.zeros_like(squares)
        for piece, weight in zip(pieces, weights, strict=True):
            squares += _row(piece.squares, squares) / weight
            sums += _row(piece.sums, sums)
        pairs = [*zip(weights, sizes, strict=True)] if known else []
        totals: list[Any] = [float(len(pieces)), sum(weights)]
        totals += [sum(w / n for w, n in pairs), sum(w * w / n for w, n in pairs), sum(n for _, n in pairs)]
        totals = totals if known else [*totals[:2], *[float("nan")] * 3]
        totals.append(float(bool(told) and told[0].of_tokens))
        # Filled on the device: a number that is sent there may make the host wait.
        counts = torch.stack(
            [t.reshape(()).to(squares) if isinstance(t, Tensor) else squares.new_full((), t) for t in totals]
        )
        weighted = bool(told) and all(one.weight is not None for one in told)
        return PieceSums(squares, sums, counts, (unclear, excess, known and not told, weighted), len(pieces))

    def check_sums(self, index: int) -> Tensor:
        """The check sum of each parameter's ``.grad`` as it is now, NaN where there is none."""
        params = [p for group in self._optimizers[index].param_groups for p in group["params"]]
        device = params[0].device
        blank = torch.full((len(params),), float("nan"), dtype=accumulation_dtype(device), device=device)
        return _row({i: self._figures.check_sum(p.grad) for i, p in enumerate(params) if p.grad is not None}, blank)


def _is_empty(piece: Told) -> bool:
    """Whether a rank without samples only joined the others: its gradient of zero is no piece."""
    return isinstance(piece.size, int) and piece.size == 0


def _row(values: Mapping[int, Number], blank: Tensor) -> Tensor:
    """A number per parameter, those of ``blank`` where there is none."""
    if not values:
        return blank
    if all(isinstance(value, float) for value in values.values()):
        row = blank.clone()
        row[list(values)] = torch.tensor([*values.values()], dtype=blank.dtype)
        return row
    # Elements that are on the device are put together there: the host waits for none.
    there = [values.get(i, blank[i]) for i in range(len(blank))]
    return torch.stack([v.to(blank) if isinstance(v, Tensor) else blank.new_full((), v) for v in there])
