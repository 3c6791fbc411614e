"""The Hessian as an optimizer sees it, and as it is for anybody who may rescale a layer.

effective: D^½ (H + Λ) D^½ with D the diagonal of the rates that the optimizer applied, Λ its coupled weight decay. Its
top eigenvalue beside the optimizer's limit of stability says how the run oscillates (Cohen et al., 2021,
arXiv:2103.00065; 2022, arXiv:2207.14484). relative: D^½ = ‖w_l‖ on tensor l, which doesn't change when a layer that is
normalised afterwards is multiplied by a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.curvature.operators import HessianOperator, ScaledOperator
from tvlars_probe.curvature.results import OPERATORS
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Rates:
    """What an optimizer multiplied the gradient by in a step, before momentum.

    Attributes:
        rates: by name of the parameter: lr·trust_ratio·(1 − dampening), divided by √v̂ + eps in the Adam family; one
            number for a tensor, or one per element.
        decay: coupled weight decay, by name.
        limit: top eigenvalue of the effective operator beyond which a quadratic diverges; None if the parameter groups
            differ in their momentum, or it isn't known.
        step: in which they were applied.
    """

    rates: Mapping[str, Tensor]
    decay: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    step: int | None = None


def effective(hessian: HessianOperator, rates: Rates) -> ScaledOperator:
    """D^½ (H + Λ) D^½.

    Raises:
        UserError: a parameter's rate isn't known.
    """
    missing = [name for name in hessian.names if name not in rates.rates or not rates.rates[name].isfinite().all()]
    if missing:
        raise UserError(
            f"the effective operator needs the rates that the optimizer applied, and that of {missing[0]} isn't known "
            f"(allowed: optimizers that tvlars_probe.describe knows, after their first step)"
        )
    scale = hessian.flatten(rates.rates).sqrt_()
    decayed = {name: torch.tensor(rates.decay.get(name, 0.0)) for name in hessian.names}
    return ScaledOperator(hessian, scale, hessian.flatten(decayed) if any(rates.decay.values()) else None)


def relative(hessian: HessianOperator) -> ScaledOperator:
    """S H S with S = ‖w_l‖ on tensor l."""
    norms = {name: norm_of(p) for name, p in zip(hessian.names, hessian.parameters, strict=True)}
    return ScaledOperator(hessian, hessian.flatten(norms))


def norm_of(p: Tensor) -> Tensor:
    """‖p‖₂ as a 0-dim tensor."""
    norm: Tensor = torch.linalg.vector_norm(p.detach(), dtype=accumulation_dtype(p.device))
    return norm


def scaled(kind: str, hessian: HessianOperator, rates: Rates | None) -> HessianOperator | ScaledOperator:
    """The operator of a kind.

    Raises:
        UserError: an unknown kind, or "effective" without rates.
    """
    if kind == "hessian":
        return hessian
    if kind == "relative":
        return relative(hessian)
    if kind != "effective":
        raise unknown("operator", kind, OPERATORS)
    if rates is None:
        raise UserError("the effective operator needs the rates that the optimizer applied: there has been no step yet")
    return effective(hessian, rates)
