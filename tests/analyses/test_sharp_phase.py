"""Which rise of a curve counts, and whether it was held."""

from __future__ import annotations

import numpy as np
import pytest

from tvlars_probe.analyses.sharp_phase import SharpPhase, sharp_phase


def phase(*values: float) -> SharpPhase:
    """The phase of a curve without errors, whose end is its last third."""
    step, value = np.arange(len(values), dtype=np.float64), np.array(values)
    return sharp_phase(step, value, np.zeros(len(values)), late=0.33, least=5, escaped=0.5)


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([10, 50, 100, 50, 5, 1, 2, 9, 9, 9, 9, 9], "trapped"),  # escaped from a first rise, held in a second one
        ([10, 50, 100, 50, 5, 1, 1, 1.2, 1.1, 1, 1.1, 1.2], "escaped"),  # what follows the fall is no rise
        ([10, 50, 100, 100, 90, 95, 100, 98, 99], "trapped"),
        ([10, 50, 100, 60, 45, 40, 40, 40, 40], "escaped"),  # below half of its top, though above where it began
        ([100, 50, 20, 10, 8, 7, 6, 6, 6], "never sharp"),
        ([1, 1.5, 1.9, 1.995, 2.01, 2.01, 2.01, 2.01, 2.01], "trapped"),  # tops within 1 % are alike, twice is twice
        ([1, 1.5, 1.9, 1.95, 1.99, 1.99, 1.99, 1.99, 1.99], "never sharp"),
    ],
)
def test_the_rise_that_the_end_is_in_counts_and_otherwise_the_largest(values: list[float], state: str) -> None:
    assert phase(*values).state == state


def test_the_figures_are_those_of_the_rise_that_counts() -> None:
    found = phase(10, 50, 100, 50, 5, 1, 2, 9, 9, 9, 9, 9)
    assert (found.lowest, found.low_step, found.top, found.top_step) == (1, 5, 9, 7)
    assert (found.rise, found.end, found.share) == (9, 9, 1)
