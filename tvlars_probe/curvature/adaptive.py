"""Adaptive sharpness of the outputs: which no change of scale moves.

The operator is |w|·K·|w|: |w| the diagonal of the weights' sizes, K = Σ_i J_iᵀ·C·J_i / Σ_i ‖C·z_i‖² over the samples i,
z_i the model's outputs, J_i = ∂z_i/∂w, and C what takes off a sample's mean over its outputs (nothing, where there is
only one). Its top eigenvalue is the largest mean square change of the outputs, as a share of their own mean square, for
changes of the weights by shares u_j of their own size, Σ_j u_j² = 1.

- A rescaling w_j → d_j·w_j with d_j > 0 that leaves the outputs as they are divides column j of J by d_j and multiplies
  |w_j| by it: nothing changes. Such are a factor before BatchNorm, c and 1/c around a ReLU for a layer or single units,
  c on the queries and 1/c on the keys. Adaptive sharpness has this property (Kwon et al. 2021, arXiv:2102.11600); raw
  sharpness doesn't (Dinh et al. 2017, arXiv:1703.04933).
- A factor on the outputs, by the last layer or by a temperature, multiplies J·|w| and z alike: nothing changes. The
  curvature of cross-entropy, in contrast, vanishes as the outputs grow, however steep they are. For that reason
  Tsuzuku et al. 2020 (arXiv:1901.04653) and Andriushchenko et al. 2023 (arXiv:2302.07011) normalise them. Here one
  factor serves the whole sample: with a factor for each sample, outputs for two classes would be constants.
- The loss doesn't occur: neither a factor nor a temperature within it matters, nor do the labels.

K is the generalised Gauss-Newton matrix of ½·mean ‖C·z‖², over that loss's own double. What isn't a positive factor for
each weight does change it: a rotation of queries and keys by one matrix, for instance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tvlars_probe.curvature.gauss_newton import GaussNewtonOperator
from tvlars_probe.curvature.losses import Composed, two_parts
from tvlars_probe.curvature.operators import ScaledOperator
from tvlars_probe.errors import UserError
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.curvature.batches import Batch
    from tvlars_probe.curvature.objective import Objective


class OutputOperator(GaussNewtonOperator):
    """Mean J_iᵀ·C·J_i over the samples: the Gauss-Newton matrix of half of the outputs' mean square.

    What it takes, keeps and tells is as of `GaussNewtonOperator`.

    Attributes:
        mean_square: Σ_i ‖C·z_i‖² over the number of samples.

    Raises:
        UserError: the model's outputs aren't known, because the loss isn't given in two parts.
    """

    def __init__(
        self, objective: Objective, parameters: Mapping[str, Tensor], *, memory_budget: int | None = None
    ) -> None:
        self.mean_square = 0.0
        super().__init__(
            objective,
            parameters,
            memory_budget=memory_budget,
            loss=Composed(two_parts(objective.compute).outputs, half_square),
        )
        total = torch.zeros(1, dtype=accumulation_dtype(self.device), device=self.device)
        with torch.no_grad():
            for batch, weight in zip(objective.batches, objective.weights, strict=True):
                mean = self.loss.loss(self.loss.outputs(objective.model, tuple(t.clone() for t in batch)), batch)
                total += mean.to(total) * (weight / objective.total_weight)
        self.mean_square = 2 * objective.shards.sum(total).item()


def half_square(outputs: Any, batch: Batch) -> Tensor:
    """½·‖C·z_i‖², its mean over a batch's samples; tensors of several outputs count together.

    Raises:
        UserError: there are no outputs.
    """
    tensors = [z for z in tree_leaves(outputs) if isinstance(z, Tensor) and z.is_floating_point()]
    if not tensors:
        raise UserError("the operator adaptive needs a model that gives tensors of numbers")
    squares = [_centred(z).square().sum() for z in tensors]
    return torch.stack(squares).sum() / (2 * len(batch[0]))


def _centred(z: Tensor) -> Tensor:
    """C·z: softmax doesn't know a number that is added to all outputs of a sample."""
    return z - z.mean(-1, keepdim=True) if z.ndim > 1 and z.shape[-1] > 1 else z


def adaptive(outputs: OutputOperator) -> ScaledOperator:
    """The adaptive operator, |w|·K·|w|.

    Args:
        outputs: the matrix K before it is divided by the outputs' mean square, which is above 0.
    """
    sizes = outputs.flatten(dict(zip(outputs.names, (p.detach().abs() for p in outputs.parameters), strict=True)))
    return ScaledOperator(outputs, sizes / outputs.mean_square**0.5)
