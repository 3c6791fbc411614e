"""Rules about figures of the whole model: spikes of loss and gradient, and a φ that has died."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.findings.rule import FindingRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Window

BEFORE, FEWEST = 128, 64
"""Steps before a step with which it is compared, and how many there must be."""

SIGMAS = 6.0
"""Standard deviations above the mean beyond which a value is a spike."""

DEAD = 1e-4
"""Share of its highest value below which φ is dead."""


class SpikeSeries:
    """A quantity of each step, and its mean + 6σ over the steps before."""

    def __init__(self) -> None:
        self.before: NDArray[np.float64] = np.empty(0)
        self.is_open = False

    def spikes(self, values: NDArray[np.float64]) -> list[tuple[int, float, int]]:
        """Where spikes begin: the place, the threshold, and the number of steps that it was taken from.

        Args:
            values: one per step; those that aren't finite are passed over, and enter no mean.
        """
        places = np.flatnonzero(np.isfinite(values))
        held = len(self.before)
        series = np.concatenate([self.before, values[places]])
        thresholds = np.full(len(places), np.inf)
        for k in range(max(held, FEWEST), min(len(series), BEFORE)):  # the first steps of a run alone
            thresholds[k - held] = _threshold(series[None, :k])[0]
        if len(series) > BEFORE:
            # Window i holds the BEFORE values before the one at BEFORE + i; those held already need none.
            windows = np.lib.stride_tricks.sliding_window_view(series[:-1], BEFORE)[max(held - BEFORE, 0) :]
            thresholds[len(places) - len(windows) :] = _threshold(windows)
        self.before = series[-BEFORE:]
        found = []
        for k in np.flatnonzero(values[places] > thresholds).tolist() if len(places) else []:
            follows_one = bool(values[places[k - 1]] > thresholds[k - 1]) if k else self.is_open
            if not follows_one:
                found.append((int(places[k]), float(thresholds[k]), min(held + k, BEFORE)))
        if len(places):
            self.is_open = bool(values[places[-1]] > thresholds[-1])
        return found

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"before": self.before.tolist(), "is_open": self.is_open}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.before, self.is_open = np.array(state["before"], dtype=np.float64), state["is_open"]


def _threshold(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean + 6σ of each window; of equal values, whose σ is rounding, a thousandth above the mean."""
    # The squares of extreme values would be beyond the range. Each window has a scale of its own: which others are
    # looked at with it is a matter of flushes.
    highest = np.maximum(windows.max(axis=1), -windows.min(axis=1))
    extreme = (highest > 1e150) | ((highest > 0) & (highest < 1e-150))
    scale = np.where(extreme, highest, 1.0)
    scaled = windows / scale[:, None] if extreme.any() else windows
    mean = scaled.mean(axis=1)
    apart = scaled - mean[:, None]
    spread = np.sqrt(np.einsum("ij,ij->i", apart, apart) / windows.shape[1])
    threshold: NDArray[np.float64] = scale * (mean + np.maximum(SIGMAS * spread, 1e-3 * np.abs(mean)))
    return threshold


class LossSpike(FindingRule):
    """The loss jumps beyond its mean + 6σ."""

    name = "loss_spike"
    about = f"the loss is beyond mean + {SIGMAS:g}σ of the last {BEFORE} steps (of {FEWEST} or more)"

    def __init__(self) -> None:
        self._series = SpikeSeries()

    def find(self, window: Window) -> Iterator[Finding]:
        losses = np.where(window.told, window.losses, np.nan)
        for row, threshold, steps in self._series.spikes(losses):
            value = float(losses[row])
            text = f"the loss {value:.4g} is beyond {threshold:.4g}, mean + {SIGMAS:g}σ of the last {steps} steps"
            yield self.finding(window.first_step + row, text, value=value, threshold=threshold)

    def state(self) -> dict[str, Any]:
        return self._series.state()

    def load(self, state: dict[str, Any]) -> None:
        self._series.load(state)


class GradSpike(FindingRule):
    """The gradient's norm jumps beyond its mean + 6σ.

    Norms before clipping are compared with norms before clipping, the others with the others: a trainer that tells the
    first in some steps alone would make a spike of each of them.
    """

    name = "grad_spike"
    about = f"‖g‖ of all tensors is beyond mean + {SIGMAS:g}σ of the last {BEFORE} recorded steps (of {FEWEST} or more)"

    def __init__(self) -> None:
        self._used, self._before_clipping = SpikeSeries(), SpikeSeries()

    def find(self, window: Window) -> Iterator[Finding]:
        before = window.before_clipping
        spikes = self._used.spikes(np.where(before, np.nan, window.grad_norms))
        spikes += self._before_clipping.spikes(np.where(before, window.grad_norms, np.nan))
        for row, threshold, steps in sorted(spikes):
            value, tensor, share = float(window.grad_norms[row]), None, ""
            norms = np.where(window.active[row], window.figures["grad_norm"][row], -np.inf)
            if len(norms) and (largest := norms.max()) > 0:
                tensor = window.tensors.names[int(norms.argmax())]
                squares = np.square(np.where(window.active[row], norms, 0.0) / largest)
                share = f"; {100 / squares.sum():.0f} % of ‖g‖² is that of {tensor}"
            text = f"‖g‖ {value:.4g} is beyond {threshold:.4g}, mean + {SIGMAS:g}σ of the last {steps} steps{share}"
            yield self.finding(window.first_step + row, text, parameter=tensor, value=value, threshold=threshold)

    def state(self) -> dict[str, Any]:
        return {"used": self._used.state(), "before_clipping": self._before_clipping.state()}

    def load(self, state: dict[str, Any]) -> None:
        self._used.load(state["used"])
        self._before_clipping.load(state["before_clipping"])


class PhiDead(FindingRule):
    """TVLARS' φ has fallen so far that it stops the training."""

    name = "phi_dead"
    about = f"TVLARS' φ is below {DEAD:g} of its highest value: adapted tensors hardly move any more"

    def __init__(self) -> None:
        self._highest, self._is_open = 0.0, False

    def find(self, window: Window) -> Iterator[Finding]:
        for row in np.flatnonzero(np.isfinite(window.phi)).tolist():
            phi = float(window.phi[row])
            self._highest = max(self._highest, phi)
            is_dead = phi < DEAD * self._highest
            if is_dead and not self._is_open:
                threshold = DEAD * self._highest
                below = f"φ {phi:.3g} is below {threshold:.3g}, {DEAD:g} of its highest value"
                text = f"{below}: every adapted tensor stands still"
                yield self.finding(window.first_step + row, text, value=phi, threshold=threshold)
            self._is_open = is_dead

    def state(self) -> dict[str, Any]:
        return {"highest": self._highest, "is_open": self._is_open}

    def load(self, state: dict[str, Any]) -> None:
        self._highest, self._is_open = state["highest"], state["is_open"]
        if not math.isfinite(self._highest):
            raise ValueError(f"the highest φ is {self._highest}")
