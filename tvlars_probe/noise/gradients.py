"""The gradients of the pieces of a batch: by layers where that is possible, by `torch.func`, or one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tvlars_probe.curvature.batches import consecutive
from tvlars_probe.curvature.graphs import SavedBytes
from tvlars_probe.noise.factors import Formed, wide
from tvlars_probe.noise.layerwise import layers_of, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvlars_probe.curvature.batches import Batch
    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.noise.factors import Factor
    from tvlars_probe.noise.layerwise import LayerPass


@dataclass(eq=False)
class Gradients:
    """The gradients h_1, ..., h_n of the pieces of a chunk.

    Attributes:
        count: n.
        loss: Σ of the pieces' losses, each by its weight, 0-dim, in a wide type.
        total: Σ h_i, by parameter; those on which the chunk's loss doesn't depend are missing.
        factors: the h_i, by parameter; the same are missing.
        bytes: memory that one piece takes, at most.
    """

    count: int
    loss: Tensor
    total: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Factor] = field(default_factory=dict)
    bytes: int = 0


class Way(Protocol):
    """A way to the gradients of pieces."""

    piece: int

    def gradients(self, chunk: Batch) -> Gradients:
        """Those of the pieces of ``chunk``, whose samples are ``piece`` times as many. Use it in `Objective.held`."""
        ...


class OneByOne:
    """A backward pass for each piece.

    Args:
        objective: f.
        parameters: by name.
        scale: what a sample's weight is multiplied by.
        piece: samples in a piece.
        joined: takes the mean over ranks of a gradient or loss, where a piece has a part on every rank.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Mapping[str, Tensor],
        scale: float,
        piece: int,
        joined: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.objective, self.parameters, self.scale, self.piece = objective, parameters, scale, piece
        self._joined = joined

    def gradients(self, chunk: Batch) -> Gradients:
        count = len(chunk[0]) // self.piece
        found: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        used, most = set[str](), 0
        loss = wide(torch.zeros((), device=self.objective.device))
        for index in range(count):
            part = consecutive(chunk, index * self.piece, (index + 1) * self.piece)
            with SavedBytes(self.parameters.values()) as saved:
                weight = self.objective.weight_of(part)
                term = self.objective.loss_of(part) * weight if weight else None
            most = max(most, saved.bytes)
            each = [None] * len(self.parameters)
            if term is not None and term.requires_grad:
                loss += wide(self._joined(term.detach().reshape(1))[0] if self._joined else term.detach())
                each = torch.autograd.grad(term * self.scale, [*self.parameters.values()], allow_unused=True)  # type: ignore[assignment]
            for (name, p), gradient in zip(self.parameters.items(), each, strict=True):
                used |= {name} if gradient is not None else set()
                whole = torch.zeros_like(p) if gradient is None else gradient.to_dense().detach()
                found[name].append(self._joined(whole) if self._joined else whole)
        factors: dict[str, Factor] = {
            name: Formed(torch.stack(found.pop(name))) for name in self.parameters if name in used
        }
        return Gradients(
            count=count,
            loss=loss,
            total={name: factor.rows.sum(0) for name, factor in factors.items()},  # type: ignore[attr-defined]
            factors=factors,
            bytes=most + 2 * sum(p.nbytes for p in self.parameters.values()),
        )


class _LossOf(nn.Module):
    """The loss of a batch as a module, whose parameters `functional_call` can exchange."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model, self._compute = objective.model, objective.compute

    def forward(self, *batch: Tensor) -> Tensor:
        return self._compute(self.model, batch).reshape(())


class Vectorised:
    """`torch.func.vmap` over samples: any model that it takes.

    Args:
        objective: f.
        parameters: by name.
        scale: what a sample's weight is multiplied by.
    """

    piece = 1

    def __init__(self, objective: Objective, parameters: Mapping[str, Tensor], scale: float) -> None:
        self.objective, self.parameters, self.scale = objective, parameters, scale

    def gradients(self, chunk: Batch) -> Gradients:
        n, module = len(chunk[0]), _LossOf(self.objective)
        rows = tuple(t.reshape(n, len(t) // n, *t.shape[1:]) for t in chunk)
        weights = [self.objective.weight_of(tuple(t[i] for t in rows)) for i in range(n)]
        # What weighs nothing may have no loss.
        there = [i for i, weight in enumerate(weights) if weight]

        def loss_of(chosen: dict[str, Tensor], weight: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
            loss = functional_call(module, chosen, batch) * weight
            return loss * self.scale, loss.detach()

        given = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        factor = next(iter(given.values())).new_tensor([weights[i] for i in there])
        with torch.no_grad():  # the parameters that aren't chosen would build a graph of their own
            each, losses = vmap(grad(loss_of, has_aux=True), in_dims=(None, 0, *[0] * len(rows)))(
                given, factor, *(t[there] for t in rows)
            )
        found = {}
        for name, p in self.parameters.items():
            whole = each.pop(f"model.{name}")
            if len(there) < n:
                whole = p.new_zeros(n, *p.shape).index_copy_(0, torch.tensor(there, device=p.device), whole)
            found[name] = whole
        return Gradients(
            count=n,
            loss=wide(losses).sum(),
            total={name: whole.sum(0) for name, whole in found.items()},
            factors={name: Formed(whole) for name, whole in found.items()},
            bytes=2 * sum(p.nbytes for p in self.parameters.values()),
        )


class ByLayers:
    """One backward pass over the batch, taken apart layer by layer; the tensors of other layers by `Vectorised`.

    It is right where no sample's loss depends on another sample, and where dimension 0 of what a layer sees counts
    samples. `doubtful` tells the tensors of which that isn't so.

    Args:
        objective: f.
        parameters: by name.
        scale: what a sample's weight is multiplied by.
    """

    piece = 1

    def __init__(self, objective: Objective, parameters: Mapping[str, Tensor], scale: float) -> None:
        self.objective, self.parameters, self.scale = objective, parameters, scale
        self._apart = set[str]()

    def set_apart(self, names: set[str]) -> None:
        """Leave tensors to `Vectorised` from now on."""
        self._apart |= names

    def gradients(self, chunk: Batch, *, whole: bool = False) -> Gradients:
        """See `Way`; with ``whole`` all sums come from autograd alone, by which those of the layers can be checked."""
        n, passes = len(chunk[0]), layers_of(self.objective.model, self.parameters.keys() - self._apart)
        weight = self.objective.weight_of(chunk)
        if not weight:
            return Gradients(count=n, loss=wide(torch.zeros((), device=self.objective.device)))
        held = [*self.objective.model.parameters(), *self.objective.model.buffers()]
        with watched(passes), SavedBytes(held) as saved:
            loss = self.objective.loss_of(chunk) * weight
        passes = [each for each in passes if each.is_usable(n)]
        summed = {full for each in passes for local, full in each.tensors.items() if each.has_total(local)}
        others = {name: p for name, p in self.parameters.items() if whole or name not in summed}
        # The edges of layers in place of the sums over samples, which needn't be made twice.
        targets = [*others.values(), *(each.edge for each in passes if each.edge is not None)]
        given = torch.autograd.grad(loss * self.scale, targets, allow_unused=True)  # type: ignore[arg-type]
        found = Gradients(n, wide(loss.detach()), bytes=saved.bytes // n)
        for name, gradient in zip(others, given, strict=False):
            if gradient is not None:
                found.total[name] = gradient.to_dense().detach()
        for each, gradient in zip(passes, given[len(others) :], strict=True):
            if gradient is not None:
                self._enter(each, gradient, found)
        if rest := {
            name: p for name, p in self.parameters.items() if name in found.total.keys() - found.factors.keys()
        }:
            self.set_apart({*rest})
            others_found = Vectorised(self.objective, rest, self.scale).gradients(chunk)
            found.factors |= others_found.factors
            found.bytes += others_found.bytes + 2 * saved.bytes // n
        return found

    def _enter(self, seen: LayerPass, outputs: Tensor, found: Gradients) -> None:
        """Add the gradients of a layer's tensors, from the gradient at its output."""
        made = seen.factors(outputs)
        found.factors |= made
        found.bytes += outputs.nbytes // found.count
        for full, factor in made.items():
            if isinstance(factor, Formed):
                found.bytes += factor.rows.nbytes // found.count
                if full not in found.total:
                    found.total[full] = factor.rows.sum(0).view(self.parameters[full].shape)


def doubtful(alone: Gradients, among: Gradients, names: Mapping[str, Tensor]) -> set[str]:
    """The tensors of which the gradients of a few samples among others aren't what they are without the others.

    With G the sum of the gradients g_i of these samples alone, it must be ⟨g_i, G⟩ = Σ_j ⟨g_i, g_j⟩ and |G|² = Σ_ij.

    Args:
        alone: of a chunk of the first few samples.
        among: of the chunk that begins with them.
        names: of the parameters.
    """
    found = set()
    for name in names:
        if name not in alone.total or name not in among.factors:
            continue
        factor, total = among.factors[name].few(alone.count), alone.total[name]
        gram, squares, square = factor.gram(), factor.squares(), wide(total).abs().square().sum()
        off = [factor.along(total) - gram.sum(1), squares - gram.diagonal(), (square - gram.sum())[None]]
        # Half precision has errors of a hundredth or so; a limit that grows on with them would find nothing.
        limit = min(16 * torch.finfo(total.dtype).eps ** 0.5, 0.1) * (squares.sum() + square)
        if not torch.cat(off).abs().max() <= limit:
            found.add(name)
    return found
