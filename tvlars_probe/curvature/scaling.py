"""Two rescaled Hessians: "effective", as an optimizer sees it, and "relative", which ignores the scale of layers.

The effective operator is D^½ (H + Λ) D^½. D is the diagonal of the rates that the optimizer applied, Λ its coupled
weight decay. Without momentum an update multiplies a small displacement from a minimum by I − D(H + Λ). D(H + Λ) has
the eigenvalues of the effective operator, but isn't symmetric. Where the top eigenvalue exceeds the optimizer's limit
of stability, a quadratic diverges (Cohen et al., 2021, arXiv:2103.00065; 2022, arXiv:2207.14484). Decoupled decay
lowers that limit; where tensors differ in it, Λ holds what has the same effect (`tvlars_probe.probes.readers.rates`).

The relative operator is S H S with S = ‖w_l‖ on tensor l. If the layer's output is normalised by its own statistics, a
factor c in the tensor leaves the loss as it is, divides the tensor's block of H by c², and multiplies S by c. The
operator doesn't change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.curvature.adaptive import OutputOperator, adaptive
from tvlars_probe.curvature.operators import HessianOperator, ScaledOperator
from tvlars_probe.curvature.results import OPERATORS
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.reductions import multi_tensor_norms

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Rates:
    """What an optimizer multiplied the gradient by in a step, before momentum.

    Attributes:
        rates: by name of the parameter, lr·trust_ratio·(1 − dampening), divided by √v̂ + eps in the Adam family. One
            number for a tensor, or one per element; NaN if the rate isn't known.
        decay: Λ by name, one number for a tensor or one per element: coupled weight decay λ, and what stands in for
            decoupled decay that isn't in ``limit``; 0 for parameters without an entry.
        limit: top eigenvalue of the effective operator beyond which a quadratic diverges. None if the momentum differs
            between the parameter groups, or if it isn't known.
        step: index of the step in which the rates were applied.
    """

    rates: Mapping[str, Tensor]
    decay: Mapping[str, float | Tensor] = field(default_factory=dict)
    limit: float | None = None
    step: int | None = None


def effective(hessian: HessianOperator, rates: Rates) -> ScaledOperator:
    """The effective operator, D^½ (H + Λ) D^½.

    Raises:
        UserError: a parameter's rate isn't known.
    """
    missing = [name for name in hessian.names if name not in rates.rates or not rates.rates[name].isfinite().all()]
    if missing:
        raise UserError(
            f"the effective operator needs the rates that the optimizer applied, and that of {missing[0]} isn't known "
            "(allowed: after its first step, an optimizer that tvlars_probe.describe knows, unless it maximizes, clips "
            "gradients itself, makes them orthogonal or takes their signs; other packages' LARS and LAMB don't keep "
            "their ratios)"
        )
    scale = hessian.flatten(rates.rates).sqrt_()
    # In float64, so that λ isn't rounded on its way to a model in double precision.
    told = {name: rates.decay.get(name, 0.0) for name in hessian.names}
    decayed = {n: x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for n, x in told.items()}
    shift = hessian.flatten(decayed)
    return ScaledOperator(hessian, scale, shift if shift.any() else None)


def relative(hessian: HessianOperator) -> ScaledOperator:
    """The relative operator, S H S with S = ‖w_l‖ on tensor l."""
    norms = {name: norm_of(p) for name, p in zip(hessian.names, hessian.parameters, strict=True)}
    return ScaledOperator(hessian, hessian.flatten(norms))


def norm_of(p: Tensor) -> Tensor:
    """‖p‖₂ as a 0-dim tensor."""
    return multi_tensor_norms([p.detach()])[0]


def scaled(kind: str, hessian: HessianOperator, rates: Rates | None) -> HessianOperator | ScaledOperator:
    """The operator named ``kind``, one of `OPERATORS`.

    Args:
        kind: its name.
        hessian: the Hessian; for "ggn" the Gauss-Newton matrix, for "adaptive" that of the outputs.
        rates: the optimizer's rates.

    Raises:
        UserError: an unknown kind, or "effective" without rates or without those of one of the parameters.
    """
    if kind in ("hessian", "ggn"):
        return hessian
    if kind == "relative":
        return relative(hessian)
    if isinstance(hessian, OutputOperator):
        return adaptive(hessian)
    if kind != "effective":
        raise unknown("operator", kind, OPERATORS)
    if rates is None:
        raise UserError("the effective operator needs the rates that the optimizer applied: there has been no step yet")
    return effective(hessian, rates)
