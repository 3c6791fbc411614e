"""TVLARS: LARS with a factor on the trust ratio that varies in time and takes the place of warm-up.

Do, Nguyen, Nguyen, Tran-Thanh, Pham: arXiv:2309.14053; IEEE TAI 2024, doi:10.1109/TAI.2024.3523252.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.optimizers.description_words import NORM_CAP
from tvlars_probe.optimizers.lars import LARS
from tvlars_probe.optimizers.layerwise import require
from tvlars_probe.optimizers.phi import phi
from tvlars_probe.reductions import accumulation_dtype, is_capturing

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from tvlars_probe.optimizers.description_words import Denominator, Exclusion


class TVLARS(LARS):
    """LARS with φ_t in its trust ratio; by default the official implementation's numbers.

    For each tensor w with gradient g, in the optimizer's t-th update (t = 1, 2, ...)::

        d  = g + weight_decay·w
        q  = eta·φ_t·min(‖w‖, 10) / min(‖d‖, 10)      1 where either norm is zero, and for tensors left out
        φ_t = 1 / (alpha + exp(lmbda·(t − delay))) + gamma_min

    The update by q·d is that of `LARS`. The count t of updates is part of ``state_dict``.

    A CUDA graph replays kernels and no Python: a count in Python would stand still, and φ with it. ``capturable`` keeps
    the count, ``group["num_updates"]``, on the device.

    Args:
        params: parameters, named parameters, or groups with their own settings.
        lr: learning rate, lr >= 0.
        weight_decay: coupled decay, >= 0.
        momentum: 0 <= momentum < 1.
        eta: trust coefficient, >= 0.
        lmbda: delay factor λ, >= 0, per update.
        weight_decay_filter: leave tensors of at most one dimension out of the decay.
        lars_adaptation_filter: leave the same tensors out of the adaptation.
        alpha: bounds φ by 1/alpha + gamma_min, > 0; officially 0.1.
        delay: d_e, in updates; officially 0.
        gamma_min: lower bound of φ, >= 0; officially 0.
        denominator: as in `LARS`.
        exclusion: as in `LARS`.
        trust_clip: as in `LARS`.
        foreach: True uses multi-tensor kernels on the CPU, too; accelerators always use them.
        capturable: keep t on the device, so that a step can be captured in a CUDA graph. As with torch's optimizers, an
            ``lr`` that is a number stays in the graph as it was; a tensor can be changed between replays.

    Raises:
        ValueError: a hyperparameter outside its range.
        RuntimeError: a step is captured in a CUDA graph without ``capturable``.
    """

    norm_cap = NORM_CAP

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        eta: float = 0.001,
        lmbda: float = 0.001,
        weight_decay_filter: bool = False,
        lars_adaptation_filter: bool = False,
        *,
        alpha: float = 0.1,
        delay: float = 0.0,
        gamma_min: float = 0.0,
        denominator: Denominator = "decayed",
        exclusion: Exclusion = "ndim",
        trust_clip: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum,
            eta,
            weight_decay_filter,
            lars_adaptation_filter,
            denominator=denominator,
            exclusion=exclusion,
            trust_clip=trust_clip,
            foreach=foreach,
            _further={
                "lmbda": lmbda,
                "alpha": alpha,
                "delay": delay,
                "gamma_min": gamma_min,
                "capturable": capturable,
                "num_updates": 0,
            },
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # An optimizer that an older version pickled has defaults without it.
            group.setdefault("capturable", False)
            _place_count(group)

    @classmethod
    def check(cls, group: dict[str, Any]) -> None:
        super().check(group)
        require("lmbda", group["lmbda"], "lmbda >= 0", group["lmbda"] >= 0)
        require("alpha", group["alpha"], "alpha > 0", group["alpha"] > 0)
        require("delay", group["delay"], "a finite number of updates", abs(group["delay"]) < float("inf"))
        require("gamma_min", group["gamma_min"], "gamma_min >= 0", group["gamma_min"] >= 0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        # t counts the optimizer's updates, not the group's: a layer that is unfrozen late gets the φ of the others.
        self.param_groups[-1]["num_updates"] = self.param_groups[0]["num_updates"]
        _place_count(self.param_groups[-1])

    def _begin_step(self) -> None:
        if not all(group["capturable"] for group in self.param_groups) and is_capturing():
            raise RuntimeError(
                "TVLARS counts its updates in Python, and replays of a CUDA graph would all have the φ of this one "
                "(remedy: TVLARS(..., capturable=True))"
            )
        for group in self.param_groups:
            group["num_updates"] += 1  # in place, where it is a tensor: a graph knows it by its address

    def phi_of(self, group: dict[str, Any]) -> float | Tensor:
        t, lmbda, alpha = group["num_updates"], group["lmbda"], group["alpha"]
        if not isinstance(t, Tensor):
            return phi(t, lmbda=lmbda, alpha=alpha, delay=group["delay"], gamma_min=group["gamma_min"])
        # Where the exponential is infinite, its reciprocal is the 0 that it should be.
        exponent = (t.to(accumulation_dtype(t.device)) - group["delay"]) * lmbda
        told: Tensor = 1.0 / (exponent.exp() + alpha) + group["gamma_min"]
        return told

    def _factor(self, group: dict[str, Any]) -> float | Tensor:
        return super()._factor(group) * self.phi_of(group)


def _place_count(group: dict[str, Any]) -> None:
    """Put a group's count of updates where ``capturable`` says: on its first parameter's device, or into Python."""
    count = group["num_updates"]
    if group["capturable"]:
        # A tensor of its own for each group, since each adds to its own.
        group["num_updates"] = torch.as_tensor(count).detach().to(group["params"][0].device, torch.int64, copy=True)
    elif isinstance(count, Tensor):
        group["num_updates"] = int(count.item())
