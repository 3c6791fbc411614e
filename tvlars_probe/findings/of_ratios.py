"""Rules about the trust ratios of single tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tvlars_probe.findings.memory import OfTensors
from tvlars_probe.findings.tensor_rule import TensorRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Floats, Window

VANISHED = 1e-6
"""Share of its own median below which a trust ratio has vanished."""

BEFORE, FEWEST = 64, 16
"""Recorded steps before a step of which that median is taken, and how many there must be."""

LEAST_PHI = 1e-30
"""φ below which a trust ratio isn't known without it; `PhiDead` has told of it long before."""

JUMP = 10.0
"""Times its later trust ratio that a tensor of zeros must have moved at."""


def _at(words: NDArray[np.object_], row: int, tensor: int) -> str:
    return str(words[row, tensor])


class RatioClamped(TensorRule):
    """A trust ratio is bound by a clamp, and no longer the quotient of norms."""

    name = "ratio_clamped"
    about = "‖w‖, the divisor or the trust ratio of a tensor is at its clamp"
    sentence = "the trust ratio of {name} is clamped: {what} {value:.4g} is at or beyond the bound {threshold:.4g}"
    _words: ClassVar = {"weight_norm": "‖w‖", "direction_norm": "its divisor", "trust_ratio": "its value"}

    def find(self, window: Window) -> Iterator[Finding]:
        t = window.tensors
        bounds = {"weight_norm": t.weight_cap, "direction_norm": t.divisor_cap, "trust_ratio": t.ratio_cap}
        bounds = {name: cap for name, cap in bounds.items() if np.isfinite(cap).any()}
        at_bound = {name: window.figures[name] >= cap for name, cap in bounds.items()}
        if all(map(self._is_quiet, at_bound.values())):
            return
        judged = window.active & t.adapted
        # A ratio of 1 that stands for a norm of zero is no clamp.
        moves = judged & (window.figures["weight_norm"] > 0) & (window.figures["grad_norm"] > 0)
        # The figure furthest beyond its bound is the one that is told.
        value, threshold = np.full(judged.shape, np.nan), np.full(judged.shape, np.inf)
        excess, what = np.zeros(judged.shape), np.full(judged.shape, "", dtype=object)
        for name, cap in bounds.items():
            figure = window.figures[name]
            beyond = np.where(moves & at_bound[name], figure / cap, 0.0)
            further = beyond > excess
            value, threshold = np.where(further, figure, value), np.where(further, cap, threshold)
            what[further] = self._words[name]
            excess = np.maximum(excess, beyond)
        words = partial(_at, what)
        yield from self._report(window, excess > 0, judged, value, threshold, below=False, what=words)


class RatioVanished(TensorRule):
    """A trust ratio falls to a millionth of what it was, apart from φ.

    The ratios of the steps before are no part of its state: they are 64 numbers a tensor. After a resume the rule waits
    for `FEWEST` recorded steps.
    """

    name = "ratio_vanished"
    about = f"a tensor's trust ratio, φ left out, is below {VANISHED:g} of its median over {BEFORE} recorded steps"
    sentence = "the trust ratio of {name} is {value:.3g}, below {threshold:.3g}, a millionth of its own median"

    def __init__(self) -> None:
        super().__init__()
        self._before = OfTensors(np.full((BEFORE, 1), np.nan))

    def find(self, window: Window) -> Iterator[Finding]:
        t = window.tensors
        rows = np.flatnonzero(window.active.any(axis=1)) if len(t.adapted_at) else ()
        if not len(rows):
            return
        ratio = self._without_phi(window)[np.ix_(rows, t.adapted_at)]
        before = self._before.of(t.adapted_names)
        kept = before[min(len(rows), BEFORE) :]
        self._before.values = np.concatenate([kept, ratio[-BEFORE:]])
        # A median is at most the maximum: where no ratio is below a millionth of that, none is needed.
        highest = np.fmax(np.fmax.reduce(before, axis=0), np.fmax.reduce(ratio, axis=0))
        low = np.fmin.reduce(ratio, axis=0) < VANISHED * highest
        if self._is_quiet(low):
            return
        value, threshold = np.full((2, *window.active.shape), np.nan)
        series = np.concatenate([before, ratio])
        for column in np.flatnonzero(low).tolist():
            for k in np.flatnonzero(ratio[:, column] < VANISHED * highest[column]).tolist():
                past = series[k : k + BEFORE, column]
                past = past[np.isfinite(past)]
                if len(past) >= FEWEST:
                    at = rows[k], t.adapted_at[column]
                    value[at], threshold[at] = ratio[k, column], VANISHED * np.median(past)
        judged = window.active & t.adapted
        yield from self._report(window, value < threshold, judged, value, threshold, below=True)

    @staticmethod
    def _without_phi(window: Window) -> Floats:
        ratio, phi = window.figures["trust_ratio"], window.figures["phi"]
        if not window.tensors.has_phi:
            return ratio
        # Where φ is all but zero, rounding has taken the ratio to zero with it: what it was without φ is lost.
        lost = phi < LEAST_PHI
        return np.where(np.isnan(phi), ratio, np.where(lost, np.nan, ratio / np.where(lost, 1.0, phi)))


class FullRateFromZero(TensorRule):
    """A tensor that was zero has moved at the full rate: without a norm there is no ratio, and 1 stands for it.

    Under LARS that is a jump, hundreds of times as far as its ratio lets it move from then on. Layers that are zero by
    design (the last one of a residual branch, say) meet it in their first update. The other tensors say nothing of it:
    behind a layer that is zero their gradients are zero, too.
    """

    name = "full_rate_from_zero"
    about = (
        "a tensor with ‖w‖ = 0, for which a trust ratio of 1 stands, has moved, and that ratio is at least "
        f"{JUMP:g} times the one that its norm gives it in the next recorded step"
    )
    sentence = (
        "{name} was zero in the recorded step before, and moved at the full rate: its trust ratio was {value:.3g}, "
        f"more than {{threshold:.3g}}, {JUMP:g} times what it is now"
    )

    def __init__(self) -> None:
        super().__init__()
        # The trust ratio in the last recorded step, of tensors that were zero and moved; NaN of all others.
        self._jumped = OfTensors(np.full(1, np.nan))

    def find(self, window: Window) -> Iterator[Finding]:
        judged = window.active & window.tensors.adapted
        weight, ratio = window.figures["weight_norm"], window.figures["trust_ratio"]
        from_zero = judged & (weight == 0) & (window.figures["grad_norm"] > 0)
        jumped = self._jumped.of(window.tensors.names)
        if self._is_quiet(from_zero) and np.isnan(jumped).all():
            return
        before = np.full(ratio.shape, np.nan)
        for column in np.flatnonzero(from_zero.any(axis=0) | ~np.isnan(jumped)).tolist():
            rows = np.flatnonzero(judged[:, column])
            told = np.where(from_zero[rows, column], ratio[rows, column], np.nan)
            *before[rows, column], jumped[column] = [jumped[column], *told]
        threshold = np.where(weight > 0, JUMP * ratio, np.nan)
        yield from self._report(window, before >= threshold, judged, before, threshold, below=False)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "jumped": {k: v for k, v in self._jumped.by_name().items() if v == v}}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._jumped.remember(state["jumped"])
