"""The norms of one optimizer's step, tensor by tensor, without disturbing it.

Of an optimizer that leaves ``last_step`` behind its own figures are recorded: they are what was used, and cost no
second pass. For any other the norms are taken just before its step, and the trust ratio follows from them where its
description says how. ‖Δw‖ comes from the optimizer's own state where that gives it, else from a copy of the weights. A
large model is copied only in one recorded step of `SNAPSHOT_EVERY`.

Of a DTensor the norms of this rank's shard are read, which `tvlars_probe.probes.rows.sharded` makes the whole tensor's
at the next flush. So a step sums nothing over the ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.optimizers.description import LiveDescription
from tvlars_probe.optimizers.rules import number
from tvlars_probe.probes.readers.columns import BEFORE_UPDATE, COLUMNS, OPTIMIZER_SPECIFIC
from tvlars_probe.probes.readers.ratios import GroupStep, RatioFiller
from tvlars_probe.reductions import (
    accumulation_dtype,
    dense_and_real,
    difference_norm,
    flat_views,
    inner_products_of_each,
    multi_tensor_dots,
    multi_tensor_norms,
    norm_of_square,
)
from tvlars_probe.shards import is_placed_like, shard_of
from tvlars_probe.whole_tensors import spread_over_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer

    from tvlars_probe.optimizers.group_description import GroupDescription

SNAPSHOT_ELEMENTS = 1 << 20
"""Up to so many elements (4 MiB) every step copies the weights, at next to no cost; above it copies are sampled."""

SNAPSHOT_EVERY = 10
"""Recorded steps from one copy to the next."""


class NormReader:
    """Reads the norms of one optimizer's steps: `before` and `after` each update.

    Args:
        optimizer: any torch optimizer.
        updates: whether to read ‖Δw‖ too.
        sharded: whether all ranks read, each its shards of DTensors.

    Attributes:
        groups: the optimizer's groups in the last step.
        ratios: fills the trust ratios. Those that follow from norms of shards are left to the flush.
    """

    def __init__(self, optimizer: Optimizer, *, updates: bool, sharded: bool = False) -> None:
        self.optimizer = optimizer
        self.updates = updates
        self.groups: list[GroupStep] = []
        self.ratios = RatioFiller()
        self._sharded, self._buffers_differ = sharded, False
        self._grads: dict[int, Tensor] = {}
        self._description = LiveDescription(optimizer)
        self._measured: Tensor | None = None
        self._active: list[bool] = []
        self._snapshots: dict[int, Tensor] = {}
        self._takes_snapshots = True
        self._tens: int | None = None

    @property
    def leaves_norms(self) -> bool:
        """Whether the optimizer leaves behind what it computed, so that nothing is measured before its step."""
        groups = self._description.groups
        return bool(groups) and all(group.norms == "last_step" for group in groups)

    @property
    def phi(self) -> float | Tensor:
        """φ of the first group's last update; NaN for optimizers that have none, or don't tell it in numbers.

        A φ that the optimizer keeps on an accelerator stays there: the host would wait for it.
        """
        phi_of = getattr(self.optimizer, "phi_of", None) if self.leaves_norms else None
        told = math.nan if phi_of is None else phi_of(self.optimizer.param_groups[0])
        return told if isinstance(told, Tensor) else float(told)

    @property
    def samples_snapshots(self) -> bool:
        """Whether the weights to copy are so many that only some steps copy them."""
        elements: int = sum(p.numel() for group, source in self._sources() if source == "weights" for p in group)
        return elements > SNAPSHOT_ELEMENTS

    @property
    def unread(self) -> list[bool]:
        """Per parameter, whether the last step's ‖Δw‖ was left out."""
        left_out = self.updates and not self._takes_snapshots
        return [left_out and source == "weights" for group, source in self._sources() for _ in group]

    @property
    def nulls(self) -> list[frozenset[str]]:
        """Per parameter, the columns that this optimizer doesn't fill."""
        without_updates = frozenset() if self.updates else frozenset({"update_norm"})
        return [(OPTIMIZER_SPECIFIC - description.columns) | without_updates for description in self.descriptions]

    @property
    def descriptions(self) -> list[GroupDescription]:
        """Per parameter, the description of its group."""
        groups = zip(self._description.groups, self.optimizer.param_groups, strict=True)
        return [description for description, group in groups for _ in group["params"]]

    def _sources(self) -> Iterator[tuple[list[Tensor], str]]:
        """Each group's parameters, and where their ‖Δw‖ is read: see `GroupDescription.update_norm`."""
        for description, group in zip(self._description.groups, self.optimizer.param_groups, strict=True):
            params: list[Tensor] = group["params"]
            # In half precision, the rounding of the weights is a large part of the update, and only a copy shows it.
            rounds = any(p.dtype in (torch.bfloat16, torch.float16) or p.is_complex() for p in params)
            # Of shards, the ratio and the direction are known at the flush only.
            unknown = self._sharded and description.update_norm == "direction" and not self.leaves_norms
            yield params, "weights" if rounds or unknown or self._buffers_differ else description.update_norm

    @property
    def of_shards(self) -> list[list[bool]]:
        """By column, whether each parameter's figure is that of this rank's shard."""
        members = sum(len(group["params"]) for group in self.optimizer.param_groups)
        measured = BEFORE_UPDATE[:3] if self._sharded and not self.leaves_norms else ()
        table = [[column in measured] * members for column in BEFORE_UPDATE]
        return [*table, [self._sharded and source != "direction" for group, source in self._sources() for _ in group]]

    def take_gradients(self) -> None:
        """Cut the gradients as their parameters are, before an update of DTensors; all ranks call it.

        Only gradients that are cut otherwise are sent between the ranks.
        """
        if not self._sharded or self.leaves_norms:
            return
        taking = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._grads = {id(p): shard_of(p.grad, like=p) for p in taking}
        # A buffer of momentum takes over the placements of the first gradient.
        self._buffers_differ |= not all(is_placed_like(p.grad, p) for p in taking)

    def before(self, index: int = 0) -> None:
        """Read the state just before an update.

        Args:
            index: number of recorded steps before this one: it decides whether large weights are copied.
        """
        self._description.renew()
        # An optimizer that doesn't step in every row may never meet a multiple: then the first step after one is due.
        tens, self._tens = self._tens, index // SNAPSHOT_EVERY
        is_due = index % SNAPSHOT_EVERY == 0 or (tens is not None and self._tens > tens)
        self._takes_snapshots = is_due or not self.samples_snapshots
        lrs = [group.get("lr", math.nan) for group in self.optimizer.param_groups]
        self.groups = [
            GroupStep(description, group["params"], lr if isinstance(lr, Tensor) else number(lr))
            for description, group, lr in zip(self._description.groups, self.optimizer.param_groups, lrs, strict=True)
        ]
        self._refuse_spread()
        if not self.leaves_norms:
            self._measured = self._measure()
        if self.updates and self._takes_snapshots:
            for params, source in self._sources():
                if source == "weights":
                    self._take_snapshots([p for p in params if p.grad is not None])

    def _refuse_spread(self) -> None:
        """Refuse parameters that were spread over ranks after the recording had begun.

        Raises:
            RuntimeError: some are. It is no UserError, which would end the training of this rank alone.
        """
        for p in (p for group in self.optimizer.param_groups for p in group["params"]):
            if (what := spread_over_ranks(p, takes_dtensors=self._sharded)) is not None:
                raise RuntimeError(f"a parameter has become {what}, spread over ranks since the recording began")

    def after(self) -> tuple[Tensor, list[bool]]:
        """Read what the update did.

        Returns:
            a tensor of shape (len(COLUMNS), number of parameters) on their device, and which of them took part.
        """
        if self.leaves_norms:
            last = self.optimizer.last_step  # type: ignore[attr-defined]
            reading = torch.stack([getattr(last, name) for name in BEFORE_UPDATE])
            active = list(last.has_grad)
        else:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            # Taken out, so that no later step finds this one's figures.
            measured, self._measured = self._measured, None
            if measured is None:  # `before` wasn't called, since the optimizer ignores its closure
                blank = self._blank()
                return torch.cat([blank, blank[:1]]), [False] * len(params)
            # As it was before the update: a step may end by clearing the gradients.
            reading, active = measured, self._active
        updates = self._update_norms(reading, active)
        if self._snapshots and self.samples_snapshots:
            self._snapshots.clear()  # no second model in memory between samples
        return torch.cat([reading, updates[None]]), active

    def _measure(self) -> Tensor:
        """‖w‖, ‖g‖, ⟨w,g⟩, and the trust ratio that the description gives for them; NaN elsewhere."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        device, table = params[0].device, self._blank()
        self._active = [p.grad is not None for p in params]
        active = [i for i, has_grad in enumerate(self._active) if has_grad]
        if active:
            taken, self._grads = self._grads, {}
            weights = [dense_and_real(shard_of(params[i])) for i in active]
            grads = [dense_and_real(taken.get(id(params[i]), params[i].grad)) for i in active]
            norms = _on_host(weights, grads) if reads_are_free(device) else _on_device(weights, grads)
            # ‖g‖ and ⟨w,g⟩ are both linear in the scale of g.
            unscale = _unscaling(self.optimizer, norms)
            norms = torch.stack([norms[0], norms[1] * unscale, norms[2] * unscale]).to(table)
            if len(active) == len(params):
                table[:3] = norms
            else:
                # One by one: a list of indices would be sent to the device, and the host would wait for that.
                for column, index in zip(norms.unbind(1), active, strict=True):
                    table[:3, index] = column
        self.ratios.fill_constants(table, self.groups)
        if not self._sharded:
            self.ratios.fill_from_norms(table, self.groups, self._active)
        return table

    def _blank(self) -> Tensor:
        """NaN of shape (len(BEFORE_UPDATE), number of parameters)."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        shape, device = (len(BEFORE_UPDATE), len(params)), params[0].device
        return torch.full(shape, math.nan, dtype=accumulation_dtype(device), device=device)

    def _take_snapshots(self, params: list[Tensor]) -> None:
        for p, mine in zip(params, map(shard_of, params), strict=True):
            # A copy keeps its tensor's memory layout, which ``model.to(memory_format=...)`` may change: tensors of
            # unlike layouts would have to be laid out anew for each comparison.
            kept = self._snapshots.get(id(p))
            if kept is None or kept.shape != mine.shape or kept.stride() != mine.stride():
                self._snapshots[id(p)] = mine.detach().clone()
            else:
                kept.copy_(mine.detach())

    def _update_norms(self, reading: Tensor, active: list[bool]) -> Tensor:
        """‖Δw‖ of every parameter, NaN where none is read."""
        norms = torch.full_like(reading[0], math.nan)
        if not self.updates:
            return norms
        offset = 0
        for (params, source), (description, _, lr) in zip(self._sources(), self.groups, strict=True):
            some = [k for k, _ in enumerate(params) if active[offset + k]]
            # Δw = −lr·q·d, of which q and ‖d‖ have been read.
            if source == "direction":
                ratio, direction = (reading[COLUMNS.index(c)] for c in ("trust_ratio", "direction_norm"))
                span = slice(offset, offset + len(params))
                norms[span] = ratio[span] * direction[span] * lr
            elif some and (source != "weights" or self._takes_snapshots):
                tensors = [params[k] for k in some]
                # Δw = −lr·m, with m the buffer of momentum.
                if source == "buffer":
                    buffers = [self.optimizer.state[p][description.momentum.buffer] for p in tensors]
                    values = _norms([shard_of(m, like=p) for m, p in zip(buffers, tensors, strict=True)]) * lr
                else:
                    values = _difference_norms([*map(shard_of, tensors)], [self._snapshots[id(p)] for p in tensors])
                if len(some) == len(params):
                    norms[offset : offset + len(params)] = values.to(norms)
                else:
                    for k, value in zip(some, values.unbind(), strict=True):
                        norms[offset + k] = value
            offset += len(params)
        return norms


def reads_are_free(device: torch.device) -> bool:
    """Whether the host can read a number on ``device`` without waiting: on the CPU, where norms are Python floats."""
    return device.type == "cpu"


def _unscaling(optimizer: Optimizer, norms: Tensor) -> Tensor | float:
    """1/scale where a gradient scaler leaves it to a fused optimizer to unscale inside its step; 1 elsewhere."""
    # torch's GradScaler sets this attribute for such a step only.
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else 1.0 / scale.to(norms)


def _on_host(weights: list[Tensor], grads: list[Tensor]) -> Tensor:
    """‖w‖, ‖g‖ and ⟨w,g⟩ as rows, a column per tensor."""
    vectors = [flat_views(w, g) for w, g in zip(weights, grads, strict=True)]
    products = inner_products_of_each(vectors, ((0, 0), (1, 1), (0, 1)))
    rows = [
        (norm_of_square(ww, w), norm_of_square(gg, g), wg)
        for (ww, gg, wg), (w, g) in zip(products, vectors, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).T


def _on_device(weights: list[Tensor], grads: list[Tensor]) -> Tensor:
    """The same as `_on_host`, without waiting for the device."""
    return torch.stack([multi_tensor_norms(weights), multi_tensor_norms(grads), multi_tensor_dots(weights, grads)])


def _norms(tensors: list[Tensor]) -> Tensor:
    tensors = [dense_and_real(t) for t in tensors]
    if reads_are_free(tensors[0].device):
        squares = inner_products_of_each([flat_views(t) for t in tensors], ((0, 0),))
        norms = [norm_of_square(square, t) for (square,), t in zip(squares, tensors, strict=True)]
        return torch.tensor(norms, dtype=torch.float64)
    return multi_tensor_norms(tensors)


def _difference_norms(new: list[Tensor], old: list[Tensor]) -> Tensor:
    new, old = [dense_and_real(t) for t in new], [dense_and_real(t) for t in old]
    if reads_are_free(new[0].device):
        return torch.tensor([difference_norm(a, b) for a, b in zip(new, old, strict=True)], dtype=torch.float64)
    # Widened first: in half precision the difference would itself be rounded.
    wide = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in new]
    return multi_tensor_norms(torch._foreach_sub(wide, old))
