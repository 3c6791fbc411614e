"""What LARS, TVLARS and LAMB share: a ratio of norms scales each tensor's rate, and the step leaves the norms behind.

After each step, `LastStep` holds what was computed for every tensor, in parameter order. The arithmetic is the same
whether a recorder reads it or not.

`torch.compile` leaves the steps alone: their kernels are fused ones already, and compiled they would round otherwise,
and be compiled anew for each φ.

There are two paths through a step. The host path takes CPU tensors one by one and computes with Python floats, since
reading a scalar is free there. The device path uses multi-tensor kernels and vectors of norms that stay on the device,
so that the host never waits. ``foreach=True`` sends CPU tensors down the device path, too.

DTensors take the device path, each rank with its shards. An update there halts where it has the norms of its tensors:
those of the shards of all groups become those of whole tensors in one sum over the ranks (`joining`), and go back.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.joining import Joining, Update, finished
from tvlars_probe.reductions import Tensors, accumulation_dtype, is_dense
from tvlars_probe.shards import is_placed_like
from tvlars_probe.uncompiled import uncompiled
from tvlars_probe.whole_tensors import REMEDY, is_dtensor, refuse_spread, spread_over_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim.optimizer import ParamsT

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class LastStep:
    """What the last step computed for each parameter: vectors over all groups' parameters, in their order.

    Norms are unclamped and of the state before the update. Entries are NaN for a parameter without gradient (see
    ``has_grad``), and for a quantity that the optimizer doesn't have (``adam_norm`` outside LAMB).

    Attributes:
        has_grad: which parameters took part in the step.
        weight_norm: ‖w‖₂.
        grad_norm: ‖g‖₂, before weight decay.
        weight_grad_dot: ⟨w, g⟩.
        direction_norm: the divisor of the trust ratio: ‖g + λw‖ or the chosen ``denominator`` (LARS, TVLARS), ‖r + λw‖
            (LAMB).
        adam_norm: LAMB's ‖r‖, r its Adam direction.
        weight_adam_dot: LAMB's ⟨w, r⟩.
        trust_ratio: the factor by which the tensor's rate was scaled; 1 where it isn't adapted or a norm is zero.
        phi: TVLARS' φ_t as applied, 1 where it wasn't applied; NaN for the other optimizers.
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
"""The vectors of `LastStep`, in the order in which both paths return each tensor's numbers."""


def require(name: str, value: float, allowed: str, holds: bool) -> None:
    """Raise ValueError, naming the range, if a hyperparameter is outside it (``holds`` is False) or NaN."""
    if not holds or math.isnan(value):
        raise ValueError(f"invalid {name}: {value!r} (allowed: {allowed})")


def as_float(value: float | Tensor) -> float:
    """A hyperparameter as a float. As in torch's optimizers, ``lr`` may be a tensor of one element."""
    return value.item() if isinstance(value, Tensor) else value


class LayerwiseOptimizer(Optimizer, ABC):
    """Base of the optimizers that scale each tensor's rate by a trust ratio.

    A subclass implements the update once for each path through a step, in `_update_on_host` and `_update_on_device`.
    This class implements the rest of the `torch.optim.Optimizer` contract.
    """

    last_step: LastStep | None = None
    """What the last step computed; None before the first."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self.check(defaults)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._joining = Joining()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch pickles defaults, state and groups only, and calls this after loading a state_dict as well.
        self._scratch = {}
        self._joining = Joining()
        # A state that an older version has saved may lack settings.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own settings, which are checked like those of the first group."""
        super().add_param_group(param_group)
        # Only torch's method fills in the defaults, so the check comes after it and takes a bad group out again.
        try:
            self.check(self.param_groups[-1])
            params = self.param_groups[-1]["params"]
            refuse_spread([(f"parameter {k}", p) for k, p in enumerate(params)], takes_dtensors=True)
        except ValueError:
            self.param_groups.pop()
            raise

    @classmethod
    def check(cls, group: dict[str, Any]) -> None:
        """Raise ValueError naming the first hyperparameter outside its range, and that range."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"invalid lr: a tensor of shape {tuple(lr.shape)} (allowed: a number or one element)")
        # The value of an lr on an accelerator isn't checked: the host would wait for it.
        if not isinstance(lr, Tensor) or lr.device.type == "cpu":
            require("lr", as_float(lr), "0 <= lr < inf", 0 <= as_float(lr) < math.inf)
        require("weight_decay", group["weight_decay"], "0 <= weight_decay < inf", 0 <= group["weight_decay"] < math.inf)

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Where there are DTensors, every rank that holds them calls it.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss; None without a closure.

        Raises:
            RuntimeError: a gradient is sparse, complex, or of another type than its parameter, or the parameter is
                spread over ranks, otherwise than as a DTensor on all ranks. Nothing is updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # In this order, a refused step has neither changed a tensor nor been counted.
        self._refuse_unsupported()
        self._begin_step()
        columns: list[Sequence[float] | Tensor | None] = []
        for group in self.param_groups:
            columns += self._step_group(group, len(columns))
        for index, column in self._joining.columns():
            columns[index] = column
        self.last_step = assemble(columns)
        return loss

    def decay_of(self, group: dict[str, Any], p: Tensor) -> float:
        """λ of this tensor: 0 where the filter leaves it out of the decay."""
        decay: float = group["weight_decay"]
        return 0.0 if group["weight_decay_filter"] and excluded(p) else decay

    def adapts(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether this tensor's rate is scaled by its trust ratio."""
        return not (group["lars_adaptation_filter"] and excluded(p))

    def phi_of(self, group: dict[str, Any]) -> float | Tensor:
        """φ of the step in progress, or else of the last one; NaN for optimizers without φ.

        It is a tensor on the device where the optimizer counts its updates there.
        """
        return NAN

    def state_tensor(self, p: Tensor, name: str) -> Tensor:
        """The state tensor ``name`` of p, in p's shape and memory layout; zero at first.

        The fused kernels walk p and its state by address, so the state is laid out anew when p's layout has changed, as
        by ``model.to(memory_format=...)``.
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
        """Uninitialised memory of p's shape and layout, valid until the next call."""
        # One allocation per type, as large as the largest tensor so far, serves every tensor of every step. p is dense
        # on the host path, so that its strides stay within p.numel() elements.
        key = (p.device, p.dtype)
        if key not in self._scratch or self._scratch[key].numel() < p.numel():
            self._scratch[key] = torch.empty(p.numel(), dtype=p.dtype, device=p.device)
        return torch.as_strided(self._scratch[key], p.shape, p.stride())

    def _begin_step(self) -> None:
        """Count this update, in optimizers that count updates."""

    def _step_group(self, group: dict[str, Any], offset: int) -> list[Sequence[float] | Tensor | None]:
        """Update one group; return a column of `QUANTITIES` per parameter, None where it has no gradient.

        DTensors are left to `Joining.columns`, and so are their columns.

        Args:
            group: the group.
            offset: number of parameters in the groups before.
        """
        columns: list[Sequence[float] | Tensor | None] = [None] * len(group["params"])
        # Multi-tensor kernels are fast only where all tensors share device and type.
        buckets: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
        on_host: list[int] = []
        for index, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if self._takes_device_path(group["foreach"], p):
                buckets.setdefault((p.device, p.dtype, is_dtensor(p)), []).append(index)
            else:
                on_host.append(index)
        updates = self._update_on_host(group, [group["params"][i] for i in on_host])
        # ``updates`` may be a generator: this loop is what makes the updates.
        for index, quantities in zip(on_host, updates, strict=True):
            columns[index] = quantities
        for (_, _, is_sharded), indices in buckets.items():
            params = [group["params"][i] for i in indices]
            update = self._update_on_device(group, params)
            if is_sharded:
                self._joining.add([offset + i for i in indices], params, update)
                continue
            for index, column in zip(indices, finished(update).unbind(1), strict=True):
                columns[index] = column
        return columns

    @staticmethod
    def _takes_device_path(foreach: bool | None, p: Tensor) -> bool:
        # The host path's fused kernels walk memory by address, in the layouts that `is_dense` knows.
        return p.device.type != "cpu" or bool(foreach) or is_dtensor(p) or not is_dense(p)

    @abstractmethod
    def _update_on_host(self, group: dict[str, Any], params: Tensors) -> Iterable[Sequence[float]]:
        """Update CPU tensors one by one; yield the `QUANTITIES` of each."""

    @abstractmethod
    def _update_on_device(self, group: dict[str, Any], params: Tensors) -> Update:
        """Update tensors of one device and dtype without waiting for it: a generator.

        It yields the figures of its tensors, or of their shards where they are DTensors, and is sent those of whole
        tensors, with which it updates. It returns a tensor of shape (len(QUANTITIES), len(params)).
        """

    def _refuse_unsupported(self) -> None:
        taking = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        try:
            self._joining.begin(taking)
        except UserError as error:
            raise RuntimeError(f"{type(self).__name__}: {error}") from None
        for g, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                if p.grad is not None and (fault := self._fault_of(p)) is not None:
                    names = group.get("param_names")
                    name = names[k] if names else f"group {g}, parameter {k}"
                    raise RuntimeError(f"{type(self).__name__}{fault.format(name=name)}")

    def _fault_of(self, p: Tensor) -> str | None:
        """Why a tensor can't be updated, as a sentence that lacks its name; None where it can."""
        assert p.grad is not None
        spread = spread_over_ranks(p, takes_dtensors=True)
        if spread:
            return f": {{name}} is {spread}, spread over ranks. {REMEDY}"
        if is_dtensor(p) and not all(
            is_placed_like(t, p) for t in self.state.get(p, {}).values() if isinstance(t, Tensor)
        ):
            return (
                ": the state of {name} isn't sharded as it is. Load it by torch.distributed.checkpoint "
                "(get_optimizer_state_dict, set_optimizer_state_dict)"
            )
        if p.grad.dtype != p.dtype:
            kinds = f"gradients of another type ({p.grad.dtype}) than their parameter's ({p.dtype})"
            return f" does not support {kinds} ({{name}})"
        if p.grad.is_sparse or p.is_complex():
            return f" does not support {'sparse gradients' if p.grad.is_sparse else 'complex parameters'} ({{name}})"
        return None


def assemble(columns: Iterable[Sequence[float] | Tensor | None]) -> LastStep:
    """Put the parameters' columns side by side, as vectors on the device of the first column that is a tensor.

    Where all columns are floats, the vectors are on the host and nothing touches a device.
    """
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
    """Whether the official filters leave this tensor out: those of at most one dimension (biases, normalisation)."""
    return p.ndim <= 1
