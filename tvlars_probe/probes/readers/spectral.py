"""The spectral norms of one optimizer's matrices and of their updates, in the steps that ask for them."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch

from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.spectral_norms import spectral_norms
from tvlars_probe.whole_tensors import spread_over_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer


class SpectralReader:
    """Reads the spectral norms of weights `before` and of their updates `after` an optimizer's step.

    Between the two it holds a copy of the weights. What has fewer than two dimensions, no gradient, or is spread over
    ranks isn't read.

    Args:
        optimizer: any torch optimizer.
        names: of its parameters, in order. They seed the random starts, together with the step: a run that goes on from
            a checkpoint has the figures of one that was never stopped.
        updates: whether those of Δw are read too.
    """

    def __init__(self, optimizer: Optimizer, names: Sequence[str], *, updates: bool) -> None:
        self.optimizer, self.names, self.updates = optimizer, names, updates
        self._step = 0
        self._copies: dict[int, Tensor] = {}

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def before(self, step: int) -> tuple[Tensor, list[bool]]:
        """Read the weights before update ``step``.

        Returns:
            values and errors, (2, parameters) on the device of the first, and which of them were read.
        """
        params = self._params
        self._step = step
        matrices = {
            i: p for i, p in enumerate(params) if p.grad is not None and p.ndim > 1 and spread_over_ranks(p) is None
        }
        figures = self._figures("weight", matrices)
        self._copies = {i: p.detach().clone() for i, p in matrices.items()} if self.updates else {}
        return figures, [i in matrices for i in range(len(params))]

    def after(self, step: int) -> tuple[Tensor, list[bool]]:
        """Read the updates of the weights that `before` has seen in the same step; returned as there."""
        copies = self._copies if step == self._step else {}  # an earlier step's may be left by an update that raised
        self._copies = {}  # no second model in memory until the next such step
        params = self._params
        figures = self._figures("update", {i: params[i] for i in copies}, copies)
        return figures, [i in copies for i in range(len(params))]

    def forget(self) -> None:
        """Let go of the copies: there was no update."""
        self._copies = {}

    def _figures(self, what: str, matrices: dict[int, Tensor], minus: dict[int, Tensor] | None = None) -> Tensor:
        params = self._params
        device = params[0].device
        table = torch.full((2, len(params)), math.nan, dtype=accumulation_dtype(device), device=device)
        # A model may be spread over several devices.
        for place in dict.fromkeys(p.device for p in matrices.values()):
            some = [i for i, p in matrices.items() if p.device == place]
            found = spectral_norms(
                [matrices[i] for i in some],
                [_seed(what, self.names[i], self._step) for i in some],
                minus=None if minus is None else [minus[i] for i in some],
            )
            # One by one: a list of indices would be sent to the device, and the host would wait for that.
            for i, figures in zip(some, found.to(table, non_blocking=True).unbind(1), strict=True):
                table[:, i] = figures
        return table


def _seed(*of: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=7).digest())
