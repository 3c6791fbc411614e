"""Critical sharpness: 2/η_c, η_c the smallest rate at which the coming update raises the loss (arXiv:2601.16979).

The update Δw that was made, or is coming, at the rate η is taken times c. The loss f(w + c·Δw) falls at first and rises
above f(w) from some c on; there η_c = c·η. On a quadratic, f(w + cΔ) − f(w) = c·gᵀΔ + c²·ΔᵀHΔ/2. For gradient descent
(Δ = −η·g) the figure is then gᵀHg/‖g‖², the curvature along the gradient. It takes forward passes only.

c is bracketed from 1 on by factors of two, and the bracket is halved until it is narrow: it ends where the loss is
below f(w), and above it, by more than rounding. Near a minimum, where the loss falls by little more than that, it is
wide. The smallest c is meant: where the loss rises, falls and rises again between two points that were evaluated, that
isn't seen.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from tvlars_probe.curvature.results import CriticalSharpness
from tvlars_probe.curvature.updates import Displaced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.updates import Update

LARGEST = 2.0**20
"""c is looked for between 1/LARGEST and LARGEST."""

ULPS = 4
"""A loss has changed if it differs from f(w) by more than so many units in its last place."""


def critical_sharpness(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    update: Update,
    *,
    tol: float = 0.01,
    report: Callable[[int], None] = lambda _: None,
) -> CriticalSharpness:
    """Find the smallest c at which f(w + c·Δw) > f(w); the figure is 2/(c·lr).

    Args:
        objective: f; it may be of a model that can't be differentiated twice, or whose parameters are DTensors.
        parameters: by name; those that the update changes are moved.
        update: Δw, and the lr of its first parameter group.
        tol: width of the last bracket as a share of c, beside the stretch in which the loss is f(w) to rounding.
        report: called with the number of evaluations made.

    Returns:
        the figure, whose ``value`` is None where no c is found: ``reason`` says why.
    """
    began = time.perf_counter()
    with objective.held():
        displaced = Displaced(objective, parameters, update)
        search = _Search(displaced, next(iter(objective.model.parameters())).dtype, report)
        # Any rank's shard may be the one that moves.
        moves = objective.shards.any(any(bool(change.any()) for change in update.changes.values()))
        reason = search.bracket() if moves else "the update changes no weight"
        if reason is None and not update.lr > 0:
            reason = f"the learning rate of the update is {update.lr:g}"
        if reason is None:
            search.bisect(tol)
    low, high = (2 / (c * update.lr) if reason is None else None for c in (search.above, search.below))
    return CriticalSharpness(
        value=None if low is None or high is None else (low + high) / 2,
        low=low,
        high=high,
        multiple=None if reason else (search.below + search.above) / 2,
        reason=reason,
        evaluations=displaced.evaluations,
        seconds=time.perf_counter() - began,
    )


class _Search:
    """Brackets the c from which on the loss is above f(w).

    A loss that differs from f(w) by rounding alone is neither above nor below it. So the bracket is as wide as the
    stretch around the crossing in which that holds, where this is wider than what was asked for.

    Attributes:
        below: the largest c below ``above`` at which the loss was seen to be below f(w); 0 before it was.
        above: the smallest c at which it was seen to be above f(w); infinite before it was.
    """

    def __init__(self, displaced: Displaced, dtype: torch.dtype, report: Callable[[int], None]) -> None:
        import torch

        self._displaced, self._report = displaced, report
        self.start = displaced.loss_here()
        self._unit = ULPS * torch.finfo(dtype).eps * abs(self.start)
        self.above = math.inf
        self._fallen, self._unclear = [0.0], list[float]()

    @property
    def below(self) -> float:
        return max(c for c in self._fallen if c < self.above)

    @property
    def _has_fallen(self) -> bool:
        return len(self._fallen) > 1

    def rises(self, c: float) -> bool:
        """Whether f(w + c·Δw) is above f(w); what isn't finite is."""
        change = self._displaced.loss_at(c) - self.start
        self._report(self._displaced.evaluations)
        # Written so that NaN counts as a rise.
        if not change <= self._unit:
            self.above = min(self.above, c)
            return True
        (self._fallen if change < -self._unit else self._unclear).append(c)
        return False

    def bracket(self) -> str | None:
        """Find a c at which the loss has risen, and a smaller one at which it hasn't; or say why there is none."""
        if not math.isfinite(self.start):
            return f"the loss at the weights is {self.start:g}"
        c = 1.0
        if self.rises(c):
            # On, until the loss is seen to fall. It may be unchanged to rounding just where it crosses f(w), or because
            # the update is that small.
            unchanged = 0
            while c > 1 / LARGEST and not self._has_fallen and unchanged < 3:
                c /= 2
                unchanged += not self.rises(c)
        else:
            while c < LARGEST and not math.isfinite(self.above):
                c *= 2
                self.rises(c)
        if not math.isfinite(self.above):
            return f"the loss doesn't rise up to {LARGEST:,.0f} times the update"
        if self.below == 0:
            return "the loss falls nowhere along the update, or by less than its rounding"
        return None

    def bisect(self, tol: float) -> None:
        """Halve until both ends of the bracket are known to ``tol`` times c, and with them the stretch between."""
        while self.above - (start := max(self.below, *self._between(), 0.0)) > tol * self.above:
            self.rises((start + self.above) / 2)
        while (end := min(self.above, *self._between(), math.inf)) - self.below > tol * self.above:
            self.rises((self.below + end) / 2)

    def _between(self) -> list[float]:
        """Where in the bracket the loss is f(w) to rounding."""
        return [c for c in self._unclear if self.below < c < self.above]
