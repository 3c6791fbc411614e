"""Rules about updates that are too large or too small for their tensor."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.findings.memory import OfTensors
from tvlars_probe.findings.tensor_rule import TensorRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Tensors, Window

NEGLIGIBLE = 1e-5
"""Share of the largest ‖g‖ of any tensor below which a tensor's gradient may be rounding alone."""

WANED = 1e-3
"""Share of a tensor's highest rate so far at which a schedule has all but ended its training."""

_PASSED_OVER = "tensors that begin at zero are passed over, since their first updates are all they are"


class _Overwritten(TensorRule):
    """A tensor is replaced by a single update: ‖Δw‖ ≥ ‖w‖."""

    def __init__(self) -> None:
        super().__init__()
        self._first = OfTensors(np.full(1, np.nan))

    @abstractmethod
    def _places(self, tensors: Tensors) -> NDArray[np.intp]:
        """The places of the tensors that are judged."""

    def find(self, window: Window) -> Iterator[Finding]:
        places = self._places(window.tensors)
        if not len(places):
            return
        weight, update = window.figures["weight_norm"], window.figures["update_norm"]
        first = self._first.of(window.tensors.names)
        unseen = places[np.isnan(first[places])]
        unseen = unseen[window.active[:, unseen].any(axis=0)] if len(unseen) else unseen
        if len(unseen):
            first[unseen] = weight[window.active[:, unseen].argmax(axis=0), unseen]
        over = update[:, places] >= weight[:, places]
        if self._is_quiet(over):
            return
        broken, judged = np.zeros((2, *window.active.shape), dtype=bool)
        broken[:, places], judged[:, places] = over, True
        # What isn't finite is another rule's.
        judged &= window.active & (first > 0) & np.isfinite(update)
        broken &= weight > 0
        yield from self._report(window, broken, judged, update, weight, below=False, what=partial(_rate, window))

    def state(self) -> dict[str, Any]:
        known = {name: value for name, value in self._first.by_name().items() if value == value}
        return {**super().state(), "first": known}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._first.remember(state["first"])


def _rate(window: Window, row: int, tensor: int) -> str:
    """At what effective rate an update was made, beside the median of its step, as the end of a sentence."""
    ratio, lr = window.figures["trust_ratio"][row], window.lr[row]
    rates = np.where(np.isnan(ratio), lr, lr * ratio)
    if not np.isfinite(rate := rates[tensor]):
        return ""
    median = np.median(rates[window.active[row] & np.isfinite(rates)])
    return f" at an effective rate of {rate:.3g}, where the median is {median:.3g}"


class WeightOverwritten(_Overwritten):
    """A weight of a layer is replaced by a single update. The first such tensor is where a rate was too high."""

    name = "weight_overwritten"
    about = f"‖Δw‖ ≥ ‖w‖ for a tensor of two or more dimensions; {_PASSED_OVER}"
    sentence = "one update overwrites {name}: ‖Δw‖ {value:.4g} for ‖w‖ {threshold:.4g}{what}"

    def _places(self, tensors: Tensors) -> NDArray[np.intp]:
        return tensors.weights_at


class ExcludedOverwritten(_Overwritten):
    """A tensor that no trust ratio holds back is replaced by a single update."""

    name = "excluded_overwritten"
    about = f"‖Δw‖ ≥ ‖w‖ for a tensor that is left out of the trust ratio; {_PASSED_OVER}"
    sentence = "one update overwrites {name}, which has no trust ratio: ‖Δw‖ {value:.4g} for ‖w‖ {threshold:.4g}{what}"

    def _places(self, tensors: Tensors) -> NDArray[np.intp]:
        return tensors.excluded_at


class UpdateBelowRounding(TensorRule):
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
