"""The generalised Gauss-Newton matrix G = Jᵀ·∇²ℓ(z)·J of a loss ℓ(z(w)) with outputs z and their Jacobian J = ∂z/∂w.

The Hessian is G plus Σ_i (∂ℓ/∂z_i)·∇²z_i, the part that comes from the curvature of the model. Where ℓ is convex in z
(cross-entropy, squared error), G is positive semi-definite. Over batches b with weights n_b it is the mean
Σ_b n_b·J_bᵀ·∇²ℓ_b·J_b / Σ_b n_b (Schraudolph, 2002, Neural Computation 14(7); Martens, 2020, arXiv:1412.1193).

A product takes one pass for J·v, one for ∇²ℓ·(J·v) through the loss alone, and one backward pass for Jᵀ. J·v is the
derivative of Jᵀ·u with respect to u, in which Jᵀ·u is linear (Townsend's trick): by the graph of one backward pass,
which is built once and kept, as that of the Hessian is. No operation needs a forward derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tvlars_probe.curvature.losses import TwoParts, as_number, two_parts
from tvlars_probe.curvature.operators import Derivatives, HessianOperator, gradient_of
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.curvature.batches import Batch
    from tvlars_probe.curvature.objective import Objective


@dataclass(frozen=True)
class Linearisation:
    """A batch's outputs z, Jᵀ·u for a u that can be differentiated, and the gradient of the loss in z.

    Attributes:
        value: one of the outputs, with its graph.
        gradients: Jᵀ·u by parameter, as a function of u.
        outputs: z, tensors with their graphs.
        dummies: u, of the shapes of z.
        leaves: z without a graph.
        loss_slopes: ∂ℓ/∂z by the leaves, times the batch's share of f; None where ℓ doesn't depend on one.
    """

    value: Tensor
    gradients: tuple[Tensor | None, ...]
    outputs: list[Tensor]
    dummies: list[Tensor]
    leaves: list[Tensor]
    loss_slopes: list[Tensor | None]

    def chosen(self, used: list[bool]) -> Linearisation:
        return replace(self, gradients=tuple(g for g, u in zip(self.gradients, used, strict=True) if u))

    def product(self, params: list[Tensor], parts: list[Tensor], *, keep: bool) -> tuple[Tensor, ...] | None:
        pulled = [(g, part) for g, part in zip(self.gradients, parts, strict=True) if g is not None]
        # A slope without a graph is constant (ℓ is linear in that output): it adds nothing.
        sloped = [(s, i) for i, s in enumerate(self.loss_slopes) if s is not None and s.requires_grad]
        if not pulled or not sloped:
            return None
        gradients, tangents = zip(*pulled, strict=True)
        pushed = torch.autograd.grad(gradients, self.dummies, tangents, retain_graph=True, materialize_grads=True)
        slopes, places = zip(*sloped, strict=True)
        bent = torch.autograd.grad(
            slopes, self.leaves, [pushed[i] for i in places], retain_graph=keep, materialize_grads=True
        )
        return torch.autograd.grad(self.outputs, params, bent, retain_graph=keep, materialize_grads=True)

    def slopes(self, params: list[Tensor]) -> tuple[Tensor | None, ...]:
        weights = [
            torch.zeros_like(z) if s is None else s.detach() for z, s in zip(self.leaves, self.loss_slopes, strict=True)
        ]
        return torch.autograd.grad(self.outputs, params, weights, retain_graph=True, allow_unused=True)


class GaussNewtonOperator(HessianOperator):
    """The generalised Gauss-Newton matrix of an objective whose loss has two parts.

    What it takes, keeps and tells is as of `HessianOperator`.

    Args:
        loss: another loss of the same model in two parts; by default the objective's own.

    Attributes:
        loss: the loss in two parts.

    Raises:
        UserError: the loss isn't given in two parts, or reaches parameters otherwise than through the outputs.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Mapping[str, Tensor],
        *,
        memory_budget: int | None = None,
        loss: TwoParts | None = None,
    ) -> None:
        self.loss = two_parts(objective.compute) if loss is None else loss
        super().__init__(objective, parameters, memory_budget=memory_budget)

    def _derivatives(self, index: int, params: list[Tensor]) -> Derivatives:
        found = evaluated(self.objective, self.loss, index)
        outputs, leaves = found.outputs, found.leaves
        slopes = slopes_of(found.term, [*leaves, *params])
        if any(slope is not None for slope in slopes[len(leaves) :]):
            raise UserError(
                "the operator ggn needs a loss that depends on the parameters through the model's outputs alone: this "
                "one reaches a parameter by another way (a penalty on the weights, for instance)"
            )
        dummies = [torch.zeros_like(z, requires_grad=True) for z in outputs]
        return Linearisation(
            value=outputs[0],
            gradients=gradient_of(outputs, params, dummies),
            outputs=outputs,
            dummies=dummies,
            leaves=leaves,
            loss_slopes=[*slopes[: len(leaves)]],
        )


@dataclass(frozen=True)
class Evaluated:
    """A batch's outputs z, and its share of f as a function of them.

    Attributes:
        places: where z stand among all that the model returns.
        outputs: z, tensors with their graphs.
        leaves: the same without a graph.
        term: the share of f, with a graph that leads to the leaves.
    """

    places: list[int]
    outputs: list[Tensor]
    leaves: list[Tensor]
    term: Tensor


def slopes_of(term: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of a loss in its outputs, with its graph; None where it doesn't depend on one."""
    if not term.requires_grad:
        return (None,) * len(tensors)
    return torch.autograd.grad(term, tensors, create_graph=True, allow_unused=True)


def evaluated(objective: Objective, loss: TwoParts, index: int, batch: Batch | None = None) -> Evaluated:
    """Evaluate a batch.

    Args:
        objective: f, held.
        loss: the loss in two parts.
        index: of the batch.
        batch: its tensors in another type, to be used instead.

    Raises:
        UserError: no output depends on a parameter; the loss isn't one real number.
    """
    given = objective.batches[index] if batch is None else batch
    parts, form = returned(objective, loss, given)
    places = [i for i, part in enumerate(parts) if isinstance(part, Tensor) and part.requires_grad]
    if not places:
        raise UserError(
            "the operator ggn found no outputs that depend on a parameter: outputs(model, batch) must return tensors, "
            "alone or in tuples, lists and dicts"
        )
    outputs = [parts[i] for i in places]
    leaves = [z.detach().requires_grad_() for z in outputs]
    for place, leaf in zip(places, leaves, strict=True):
        parts[place] = leaf.clone()  # a loss may work in place on the outputs
    value = as_number(loss.loss(tree_unflatten(parts, form), given))
    return Evaluated(places, outputs, leaves, value * (objective.weights[index] / objective.total_weight))


def returned(objective: Objective, loss: TwoParts, batch: Batch) -> tuple[list[Any], Any]:
    """All that the model returns of a batch, in a list, and the form in which it does."""
    # Copies: a model may work in place on its inputs.
    return tree_flatten(loss.outputs(objective.model, tuple(t.clone() for t in batch)))
