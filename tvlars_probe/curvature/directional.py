"""Directional sharpness: ΔᵀHΔ/‖Δ‖² along an update Δ of the weights, which takes one product with the Hessian H.

To second order an update changes the loss by gᵀΔ + ‖Δ‖²/2 times this figure (cf. Pan and Li, 2023, arXiv:2306.00204).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from tvlars_probe.curvature.krylov import norm, products
from tvlars_probe.curvature.results import DirectionalSharpness
from tvlars_probe.errors import NonFiniteLossError

if TYPE_CHECKING:
    from tvlars_probe.curvature.operators import HessianOperator
    from tvlars_probe.curvature.updates import Update


def directional_sharpness(hessian: HessianOperator, update: Update) -> DirectionalSharpness:
    """The curvature along an update.

    Args:
        hessian: H, with respect to the parameters that the loss depends on. Other parameters that the update changes
            add nothing to ΔᵀHΔ, and count in ‖Δ‖.
        update: Δ.

    Raises:
        NonFiniteLossError: the update, or the product, isn't finite.
    """
    began = time.perf_counter()
    zeros = {name: torch.zeros((), dtype=hessian.dtype, device=hessian.device) for name in hessian.names}
    v = hessian.flatten(zeros | {name: d for name, d in update.changes.items() if name in zeros})
    length = math.hypot(norm(v), *(norm(d.reshape(-1)) for name, d in update.changes.items() if name not in zeros))
    if length == 0:
        return DirectionalSharpness(value=None, matvecs=0, seconds=time.perf_counter() - began)
    v /= length
    value = products(v[None], hessian.matvec(v)).item()
    if not math.isfinite(value):
        raise NonFiniteLossError("the update, or its product with the Hessian, isn't finite")
    return DirectionalSharpness(value=value, matvecs=1, seconds=time.perf_counter() - began)
