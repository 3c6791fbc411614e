"""NVIDIA apex's fused optimizers without their CUDA kernels: constructors, groups and formulas as it documents them.

apex can't be installed without a CUDA compiler. Only what is described of them is tested by these, not apex.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer


class _Fused(Optimizer):
    def __init_subclass__(cls, module: str) -> None:
        cls.__module__ = f"apex.optimizers.{module}"

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                if p.grad is not None:
                    self.update(group, p, p.grad)

    def update(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        raise NotImplementedError

    def moment(self, p: torch.Tensor, name: str) -> Any:
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p)
        return self.state[p][name]


class FusedSGD(_Fused, module="fused_sgd"):
    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False, wd_after_momentum: bool = False,
    ) -> None:  # fmt: skip
        self.wd_after_momentum = wd_after_momentum
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def update(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        decay, beta = group["weight_decay"] * p, group["momentum"]
        g = g if self.wd_after_momentum else g + decay
        if beta:
            first = "momentum_buffer" not in self.state[p]
            buffer = self.moment(p, "momentum_buffer")
            buffer.copy_(g if first else beta * buffer + (1 - group["dampening"]) * g)
            g = g + beta * buffer if group["nesterov"] else buffer
        p.sub_(group["lr"] * (g + decay if self.wd_after_momentum else g))


class FusedAdam(_Fused, module="fused_adam"):
    def __init__(
        self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, adam_w_mode: bool = True, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        self.adam_w_mode = 1 if adam_w_mode else 0
        super().__init__(
            params, lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay
        )

    def direction(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"] * p
        g = g if self.adam_w_mode else g + decay
        m, v = self.moment(p, "exp_avg"), self.moment(p, "exp_avg_sq")
        m.mul_(beta1).add_(g, alpha=1 - beta1 if group.get("grad_averaging", True) else 1.0)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        corrections = [1 - beta ** group["step"] if group["bias_correction"] else 1.0 for beta in (beta1, beta2)]
        u = m / corrections[0] / ((v / corrections[1]).sqrt() + group["eps"])
        return u + decay if self.adam_w_mode else u

    def update(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        p.sub_(group["lr"] * self.direction(group, p, g))


class FusedLAMB(FusedAdam, module="fused_lamb"):
    def __init__(
        self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6, weight_decay: float = 0.01, adam_w_mode: bool = True, grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0, use_nvlamb: bool = False,
    ) -> None:  # fmt: skip
        self.adam_w_mode, self.use_nvlamb = 1 if adam_w_mode else 0, use_nvlamb
        _Fused.__init__(
            self, params, lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay,
            grad_averaging=grad_averaging, max_grad_norm=max_grad_norm,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        whole, limit = math.sqrt(sum(float((g * g).sum()) for g in grads)), self.defaults["max_grad_norm"]
        self.scale = limit / whole if limit and whole > limit else 1.0
        super().step()

    def update(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        u = self.direction(group, p, g * self.scale)
        w_norm, u_norm = p.norm(), u.norm()
        adapts = (self.use_nvlamb or group["weight_decay"] != 0) and w_norm != 0 and u_norm != 0
        p.sub_(group["lr"] * (w_norm / u_norm if adapts else 1.0) * u)


class FusedAdagrad(_Fused, module="fused_adagrad"):
    def __init__(
        self, params: Any, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0,
        adagrad_w_mode: bool = False,
    ) -> None:  # fmt: skip
        self.adagrad_w_mode = 1 if adagrad_w_mode else 0
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        decay = group["weight_decay"] * p
        g = g if self.adagrad_w_mode else g + decay
        total = self.moment(p, "sum").add_(g * g)
        u = g / (total.sqrt() + group["eps"])
        p.sub_(group["lr"] * (u + decay if self.adagrad_w_mode else u))
