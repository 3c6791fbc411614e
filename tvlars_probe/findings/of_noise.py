"""A rule about the gradient's noise: a batch that is far larger than the noise scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.findings.rule import FindingRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Window

STRETCH = 64
"""Recorded steps that are averaged over. Stretches follow each other, and don't overlap."""

FAR = 2.0
"""The batch is to be beyond so many times the noise scale: two thirds of the samples are wasted there, since E samples
are needed where E_min would do, and E/E_min = 1 + B/B_simple."""

ERRORS = 4.0
"""Standard errors of a stretch's mean by which it must be above zero."""


class BatchBeyondNoise(FindingRule):
    """The batch is far beyond the noise scale.

    B > f·B_simple, with B_simple = tr Σ/|G|², is B·|G|² − f·tr Σ > 0. That is linear in the two estimates, which are
    unbiased: no ratio is taken, and nothing is divided by a |G|² that may be zero.
    """

    name = "batch_beyond_noise"
    about = (
        f"the batch is beyond {FAR:g} times the gradient's noise scale B_simple, by more than {ERRORS:g} standard "
        f"errors of the mean over {STRETCH} recorded steps"
    )

    def __init__(self) -> None:
        # By step of the stretch: the batch, |G|² and tr Σ.
        self._batches: list[float] = []
        self._signal: list[float] = []
        self._noise: list[float] = []
        self._is_open = False

    def find(self, window: Window) -> Iterator[Finding]:
        told = np.isfinite(window.batches) & np.isfinite(window.gradient_square) & np.isfinite(window.noise_trace)
        for row in np.flatnonzero(told).tolist():
            self._batches.append(float(window.batches[row]))
            self._signal.append(float(window.gradient_square[row]))
            self._noise.append(float(window.noise_trace[row]))
            if len(self._batches) == STRETCH:
                yield from self._judged(window.first_step + row)
                self._batches, self._signal, self._noise = [], [], []

    def _judged(self, step: int) -> Iterator[Finding]:
        """The finding of a stretch that ends in this step; none where an episode goes on or nothing is wrong."""
        batches, signal, noise = map(np.asarray, (self._batches, self._signal, self._noise))
        beyond = batches * signal - FAR * noise
        mean = float(beyond.mean())
        error = float(beyond.std(ddof=1)) / math.sqrt(STRETCH)
        if mean > ERRORS * error and mean > 0:
            if not self._is_open:
                batch, scale = float(batches.mean()), max(float(noise.mean() / signal.mean()), 0.0)
                wasted = 100 * batch / (batch + scale)
                text = (
                    f"a batch of {batch:,.0f} is far beyond the gradient's noise scale, {scale:,.3g} over the last "
                    f"{STRETCH} recorded steps: {wasted:.0f} % of its samples are wasted"
                )
                yield self.finding(step, text, value=batch, threshold=FAR * scale)
            self._is_open = True
        elif mean <= 0:
            # In between an episode goes on: a batch at the threshold would begin one again and again.
            self._is_open = False

    def state(self) -> dict[str, Any]:
        return {
            "batches": [*self._batches],
            "signal": [*self._signal],
            "noise": [*self._noise],
            "is_open": self._is_open,
        }

    def load(self, state: dict[str, Any]) -> None:
        columns = [list(map(float, state[name])) for name in ("batches", "signal", "noise")]
        if len({*map(len, columns)}) > 1 or len(columns[0]) >= STRETCH:
            raise ValueError(f"no stretch of fewer than {STRETCH} steps")
        self._batches, self._signal, self._noise = columns
        self._is_open = state["is_open"]
