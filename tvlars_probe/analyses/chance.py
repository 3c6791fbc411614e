"""Test accuracies beside those of equal guesses."""

from __future__ import annotations

LEARNED = 0.1
"""A run has learned if its accuracy went at least this share of the way from that of equal guesses to 100 %."""


def above_chance(accuracy: float, chance: float) -> float:
    """The share of the way from ``chance``, the accuracy of equal guesses, to 100 %; both are in percent."""
    return (accuracy - chance) / (100.0 - chance)


def has_learned(accuracy: float, chance: float) -> bool:
    """Whether an accuracy is better than that of equal guesses by enough; not where either is NaN."""
    return above_chance(accuracy, chance) >= LEARNED
