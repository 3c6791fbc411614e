"""Rules about single tensors: their trust ratios, and updates that are too large or too small for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tvlars_probe.findings.memory import Episodes, OfTensors
from tvlars_probe.findings.rule import FindingRule, first_of_each_step, with_others

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Flags, Floats, Window

VANISHED = 1e-6
"""Share of its own median below which a trust ratio has vanished."""

BEFORE, FEWEST = 64, 16
"""Recorded steps before a step of which that median is taken, and how many there must be."""

LEAST_PHI = 1e-30
"""φ below which a trust ratio isn't known without it; `PhiDead` has told of it long before."""

NEGLIGIBLE = 1e-5
"""Share of the largest ‖g‖ of any tensor below which a tensor's gradient may be rounding alone."""

WANED = 1e-3
"""Share of a tensor's highest rate so far at which a schedule has all but ended its training."""


class _TensorRule(FindingRule):
    """Base of the rules that compare a figure of each tensor with a threshold of its own.

    In most flushes no tensor breaks a rule, and none has before: a rule then returns after a pass or two.
    """

    sentence: str
    """What is said of a tensor, from its ``name``, ``value`` and ``threshold``, and from ``what`` the value is."""

    def __init__(self) -> None:
        self._episodes = Episodes()

    def _is_quiet(self, broken: Flags) -> bool:
        """Whether there is nothing to report, and no episode that may end."""
        return not broken.any() and not self._episodes.any_open

    def _report(
        self,
        window: Window,
        broken: Flags,
        judged: Flags,
        value: Floats,
        threshold: Floats,
        *,
        below: bool,
        what: NDArray[np.object_] | None = None,
    ) -> Iterator[Finding]:
        """Yield a finding for each step in which tensors begin to break the rule, about the one furthest off."""
        names = window.tensors.names
        rows, tensors = self._episodes.begun(broken, judged, names)
        if not len(rows):
            return
        severity = threshold / value if below else value / threshold
        for row, worst, others in first_of_each_step(rows, tensors, severity):
            a, b = float(value[row, worst]), float(threshold[row, worst])
            told = {
                "name": names[worst],
                "value": a,
                "threshold": b,
                "what": None if what is None else what[row, worst],
            }
            text = with_others(self.sentence.format(**told), others, names)
            yield self.finding(window.first_step + row, text, parameter=names[worst], value=a, threshold=b)

    def state(self) -> dict[str, Any]:
        return {"episodes": self._episodes.state()}

    def load(self, state: dict[str, Any]) -> None:
        self._episodes.load(state["episodes"])


class RatioClamped(_TensorRule):
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
        yield from self._report(window, excess > 0, judged, value, threshold, below=False, what=what)


class RatioVanished(_TensorRule):
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


class ExcludedOverwritten(_TensorRule):
    """A tensor that no trust ratio holds back is replaced by a single update."""

    name = "excluded_overwritten"
    about = (
        "‖Δw‖ ≥ ‖w‖ for a tensor that is left out of the trust ratio; tensors that begin at zero are passed over, "
        "since their first updates are all they are"
    )
    sentence = "one update overwrites {name}, which has no trust ratio: ‖Δw‖ {value:.4g} for ‖w‖ {threshold:.4g}"

    def __init__(self) -> None:
        super().__init__()
        self._first = OfTensors(np.full(1, np.nan))

    def find(self, window: Window) -> Iterator[Finding]:
        excluded = window.tensors.excluded_at
        if not len(excluded):
            return
        weight, update = window.figures["weight_norm"], window.figures["update_norm"]
        first = self._first.of(window.tensors.names)
        unseen = excluded[np.isnan(first[excluded])]
        unseen = unseen[window.active[:, unseen].any(axis=0)] if len(unseen) else unseen
        if len(unseen):
            first[unseen] = weight[window.active[:, unseen].argmax(axis=0), unseen]
        over = update[:, excluded] >= weight[:, excluded]
        if self._is_quiet(over):
            return
        broken = np.zeros(window.active.shape, dtype=bool)
        broken[:, excluded] = over
        judged = window.active & window.tensors.excluded & (first > 0) & ~np.isnan(update)
        yield from self._report(window, broken & (weight > 0), judged, update, weight, below=False)

    def state(self) -> dict[str, Any]:
        known = {name: value for name, value in self._first.by_name().items() if value == value}
        return {**super().state(), "first": known}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._first.remember(state["first"])


class UpdateBelowRounding(_TensorRule):
    """An update is lost when it is rounded into the weights.

    A schedule that ends at zero makes the last updates as small in every run: those at a thousandth of the tensor's
    highest rate are passed over.
    """

    name = "update_below_rounding"
    about = (
        "‖Δw‖ is below u·‖w‖, u being the unit roundoff of the weights' type; passed over where a schedule has taken "
        f"the rate below {WANED:g} of its highest, or ‖g‖ is below {NEGLIGIBLE:g} of the largest tensor's (that of a "
        "bias before BatchNorm is rounding alone)"
    )
    sentence = "the update of {name} is lost in rounding: ‖Δw‖ {value:.3g} is below {threshold:.3g}, u·‖w‖"

    def __init__(self) -> None:
        super().__init__()
        self._highest = OfTensors(np.zeros(1))

    def find(self, window: Window) -> Iterator[Finding]:
        update = window.figures["update_norm"]
        before = self._highest.of(window.tensors.names)
        self._highest.values = np.fmax(before, np.fmax.reduce(window.lr, axis=0))
        threshold = window.tensors.rounding * window.figures["weight_norm"]
        broken = update < threshold
        if self._is_quiet(broken):
            return
        grad = window.figures["grad_norm"]
        matters = grad > NEGLIGIBLE * np.fmax.reduce(grad, axis=1)[:, None]
        highest = np.fmax.accumulate(np.concatenate([before[None], window.lr]), axis=0)[1:]
        broken &= matters & (window.lr > WANED * highest) & np.isfinite(threshold)
        judged = window.active & ~np.isnan(update)
        yield from self._report(window, broken, judged, update, threshold, below=True)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "highest": self._highest.by_name()}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._highest.remember(state["highest"])
