"""N-LAMB: LAMB with Nesterov's momentum (You et al. 2020, arXiv:1904.00962, appendix; Dozat 2016 for Adam)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.optimizers.lamb import LAMB

if TYPE_CHECKING:
    from torch import Tensor

    from tvlars_probe.reductions import Tensors


class NLAMB(LAMB):
    """LAMB whose direction looks one step ahead.

    It is `tvlars_probe.LAMB` with another numerator in Adam's direction: the m that the next step will have if the
    gradient stays the same::

        r = (β₁·m + (1 − β₁)·g) / (√v + eps)

    Like LAMB here, it doesn't correct the bias. The paper's N-LAMB does: it divides m by 1 − β₁ᵗ⁺¹, g by 1 − β₁ᵗ and v
    by 1 − β₂ᵗ. Arguments and errors are those of LAMB.
    """

    def look_ahead(self, group: dict[str, Any], direction: Tensor, grad: Tensor, exp_avg_sq: Tensor) -> None:
        beta1 = group["betas"][0]
        # r = β₁·m/(√v + eps) + (1 − β₁)·g/(√v + eps), whose first fraction the fused kernel has left in ``direction``.
        direction.mul_(beta1).addcdiv_(grad, exp_avg_sq.sqrt().add_(group["eps"]), value=1 - beta1)

    def numerators(self, group: dict[str, Any], grads: Tensors, exp_avgs: Tensors) -> Tensors:
        beta1 = group["betas"][0]
        scaled = torch._foreach_mul(exp_avgs, beta1)
        torch._foreach_add_(scaled, grads, alpha=1 - beta1)
        return list(scaled)
