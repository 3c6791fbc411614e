"""What LARS, TVLARS and LAMB share: a rate per tensor, set by a ratio of norms, and the norms it was set by.

Each step leaves `LastStep` behind: what was computed for every tensor, in parameter order. A recorder reads it; the
arithmetic is the same whether anybody does or not.

There are two ways through a step. On the CPU, tensor by tensor with Python floats, where reading a scalar is free.
On an accelerator, multi-tensor kernels and vectors of norms that stay on the device: the host never waits.
``foreach`` chooses one by hand, as in `torch.optim`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tvlars_probe.reductions import Tensors, accumulation_dtype, is_dense

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim.optimizer import ParamsT

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class LastStep:
    """What the last step computed for each parameter: vectors over all groups' parameters, in their order.

    Norms are of the state before the update and unclamped. Entries of a parameter without gradient are NaN
    (``has_grad`` tells), as are quantities that the optimizer has no use for (``adam_norm`` outside LAMB).

    Attributes:
        has_grad: which parameters took part in the step.
        weight_norm: ‖w‖₂.
        grad_norm: ‖g‖₂, before weight decay.
        weight_grad_dot: ⟨w, g⟩.
        direction_norm: the norm divided by: ‖g + λw‖ (LARS, TVLARS; their other denominators likewise), ‖r + λw‖
            (LAMB).
        adam_norm: LAMB's ‖r‖, r its Adam direction.
        weight_adam_dot: LAMB's ⟨w, r⟩.
        trust_ratio: the factor by which the tensor's rate was scaled; 1 where excluded or at zero norm.
        phi: TVLARS' φ_t as applied, 1 where not applied; NaN for the others.
    """

    has_grad: tuple[bool, ...]
    weight_norm: Tensor
    grad_norm: Tensor
    weight_grad_dot: Tensor
    direction_norm: Tensor
    adam_norm: Tensor
    weight_adam_dot: Tensor
    trust_ratio: Tensor
    phi: Tensor


QUANTITIES = tuple(name for name in LastStep.__slots__ if name != "has_grad")


def require(name: str, value: float, allowed: str, holds: bool) -> None:
    """Refuse a hyperparameter outside its range, naming the range."""
    if not holds or math.isnan(value):
        raise ValueError(f"invalid {name}: {value!r} (allowed: {allowed})")


def as_float(value: float | Tensor) -> float:
    """A hyperparameter that may be a 0-dim tensor, as torch's optimizers accept for ``lr``."""
    return value.item() if isinstance(value, Tensor) else value


class LayerwiseOptimizer(Optimizer):
    """Base of the optimizers that scale each tensor's rate by a trust ratio.

    A subclass says what one tensor's update is, once for each way through a step: `_update_on_host` and
    `_update_on_device`; the rest of the `torch.optim.Optimizer` contract stands here.
    """

    last_step: LastStep | None = None

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self.check(defaults)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own settings; its hyperparameters are checked like the first ones."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @classmethod
    def check(cls, group: dict[str, Any]) -> None:
        """Raise ValueError naming the first hyperparameter outside its range, and that range."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"invalid lr: a tensor of shape {tuple(lr.shape)} (allowed: a number or one element)")
        if not isinstance(lr, Tensor) or lr.device.type == "cpu":
            require("lr", as_float(lr), "0 <= lr < inf", 0 <= as_float(lr) < math.inf)
        require("weight_decay", group["weight_decay"], "0 <= weight_decay < inf", 0 <= group["weight_decay"] < math.inf)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss, which is returned.

        Raises:
            RuntimeError: a gradient is sparse, complex, or of another type than its parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_unsupported()
        self._begin_step()
        columns: list[Sequence[float] | Tensor | None] = []
        for group in self.param_groups:
            columns += self._step_group(group)
        self.last_step = assemble(columns)
        return loss

    def decay_of(self, group: dict[str, Any], p: Tensor) -> float:
        """The weight decay that this tensor gets."""
        decay: float = group["weight_decay"]
        return 0.0 if group["weight_decay_filter"] and excluded(p) else decay

    def adapts(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether this tensor's rate is scaled by its trust ratio."""
        return not (group["lars_adaptation_filter"] and excluded(p))

    def phi_of(self, group: dict[str, Any]) -> float:
        """φ of the step that is being made or was made last; NaN for optimizers that have none."""
        return NAN

    def state_tensor(self, p: Tensor, name: str) -> Tensor:
        """A state tensor of p's shape and memory layout, zero at first.

        The layout follows the parameter's (which ``model.to(memory_format=...)`` may change), because the fused
        kernels walk both by address.
        """
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        elif is_dense(p) and state[name].stride() != p.stride():
            state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(state[name])
        tensor: Tensor = state[name]
        return tensor

    def aligned_grad(self, p: Tensor) -> Tensor:
        """p's gradient in p's memory layout."""
        assert p.grad is not None
        if p.grad.stride() == p.stride():
            return p.grad
        return torch.empty_like(p, memory_format=torch.preserve_format).copy_(p.grad)

    def scratch(self, p: Tensor) -> Tensor:
        """Uninitialised memory of p's shape and layout, good until the next call."""
        key = (p.device, p.dtype)
        if key not in self._scratch or self._scratch[key].numel() < p.numel():
            self._scratch[key] = torch.empty(p.numel(), dtype=p.dtype, device=p.device)
        return torch.as_strided(self._scratch[key], p.shape, p.stride())

    def _begin_step(self) -> None:
        """Whatever counts updates counts this one."""

    def _step_group(self, group: dict[str, Any]) -> list[Sequence[float] | Tensor | None]:
        """Update one group; return a column of `QUANTITIES` per parameter, None where there was no gradient."""
        columns: list[Sequence[float] | Tensor | None] = [None] * len(group["params"])
        buckets: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        on_host: list[int] = []
        for index, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if self._takes_device_path(group["foreach"], p):
                buckets.setdefault((p.device, p.dtype), []).append(index)
            else:
                on_host.append(index)
        updates = self._update_on_host(group, [group["params"][i] for i in on_host])
        for index, quantities in zip(on_host, updates, strict=True):
            columns[index] = quantities
        for indices in buckets.values():
            table = self._update_on_device(group, [group["params"][i] for i in indices])
            for index, column in zip(indices, table.unbind(1), strict=True):
                columns[index] = column
        return columns

    @staticmethod
    def _takes_device_path(foreach: bool | None, p: Tensor) -> bool:
        return p.device.type != "cpu" or bool(foreach) or not is_dense(p)

    def _update_on_host(self, group: dict[str, Any], params: Tensors) -> Iterable[Sequence[float]]:
        """Update CPU tensors one by one; yield each one's `QUANTITIES`."""
        raise NotImplementedError

    def _update_on_device(self, group: dict[str, Any], params: Tensors) -> Tensor:
        """Update tensors of one device and dtype without waiting for it; return (len(QUANTITIES), len(params))."""
        raise NotImplementedError

    def _refuse_unsupported(self) -> None:
        for g, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if p.grad.is_sparse or p.is_complex() or p.grad.dtype != p.dtype:
                    names = group.get("param_names")
                    name = names[k] if names else f"group {g}, parameter {k}"
                    what = "sparse gradients" if p.grad.is_sparse else "complex parameters"
                    if p.grad.dtype != p.dtype:
                        what = f"gradients of another type ({p.grad.dtype}) than their parameter's ({p.dtype})"
                    raise RuntimeError(f"{type(self).__name__} does not support {what} ({name})")


def assemble(columns: Iterable[Sequence[float] | Tensor | None]) -> LastStep:
    """Put the parameters' columns side by side; one device transfer at most, none where all are floats."""
    columns = list(columns)
    device = next((c.device for c in columns if isinstance(c, Tensor)), torch.device("cpu"))
    missing = [NAN] * len(QUANTITIES)
    if device.type == "cpu" and not any(isinstance(c, Tensor) for c in columns):
        rows = [missing if c is None else c for c in columns]
        table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(QUANTITIES)).T
    else:
        dtype = accumulation_dtype(device)
        blank = torch.full((len(QUANTITIES),), NAN, dtype=dtype, device=device)
        table = torch.stack([_column(c, blank) for c in columns], dim=1)
    has_grad = tuple(c is not None for c in columns)
    return LastStep(has_grad, *table.unbind(0))


def _column(column: Sequence[float] | Tensor | None, blank: Tensor) -> Tensor:
    if column is None:
        return blank
    if isinstance(column, Tensor):
        return column.to(blank, non_blocking=True)
    return torch.tensor(column, dtype=blank.dtype).to(blank.device, non_blocking=True)


def excluded(p: Tensor) -> bool:
    """Whether the official filters leave this tensor out: at most one dimension (biases, normalisation layers)."""
    return p.ndim <= 1
