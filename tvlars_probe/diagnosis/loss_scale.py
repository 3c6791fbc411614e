"""Whether a recorded loss was divided by something that it shouldn't be divided by.

A factor that is the same in all steps can't be seen in a course of losses. Two that are common can: the count of
epochs, where the sum over an epoch's batches is divided by the number of all steps so far; and the number of
micro-batches, since the first loss is that of guessing among the classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.diagnosis.results import Observed

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_EPOCHS, FEWEST_STEPS = 4, 8
"""Epochs, and steps in each, without which the count of epochs can't be seen."""

_SLOPE, _BETTER = 0.25, 0.25
"""How far the falls at the ends of epochs may be from ln((e + 1)/(e + 2)), relatively; and what share of the
squares that one fall for all epochs leaves that law may leave."""

_NEAR, _BELOW = 0.15, 0.7
"""How near the first loss times the number of pieces must be to that of guessing, relatively; and the share of it below
which a first loss is too low."""


def epoch_shows(loss: NDArray[np.float64], epoch: NDArray[np.float64]) -> Observed:
    """Does the loss fall by (e + 1)/(e + 2) between epochs e and e + 1, and not inside of them?

    Args:
        loss: the loss of each step.
        epoch: its epoch, from 0.
    """
    numbers = [e for e in np.unique(epoch[np.isfinite(epoch)]).tolist() if (epoch == e).sum() >= FEWEST_STEPS]
    pairs = [(int(e), loss[epoch == e], loss[epoch == e + 1]) for e in numbers if e + 1 in numbers][:8]
    if len(pairs) < FEWEST_EPOCHS - 1:
        return Observed("can't tell", f"fewer than {FEWEST_EPOCHS} epochs of {FEWEST_STEPS} steps are on record")
    near = FEWEST_STEPS // 2
    with np.errstate(all="ignore"):
        drops = np.array([np.log(after[:near].mean() / before[-near:].mean()) for _, before, after in pairs])
        # As many steps apart, at the end of the same epoch.
        inside = np.array([np.log(b[-near:].mean() / b[-2 * near : -near].mean()) for _, b, _ in pairs])
    expected = np.array([math.log((e + 1) / (e + 2)) for e, _, _ in pairs])
    if not (np.isfinite(drops).all() and np.isfinite(inside).all()):
        return Observed("can't tell", "the losses have no logarithm")
    told = ", ".join(f"{math.exp(drop):.2f}" for drop in drops[:3])
    falls = drops - inside
    slope = float(falls @ expected / (expected @ expected))
    left, left_of_one = float(np.square(falls - expected).sum()), float(np.square(falls - falls.mean()).sum())
    if abs(slope - 1) < _SLOPE and left < _BETTER * left_of_one:
        return Observed(
            "wrong",
            f"at the ends of {len(pairs)} epochs the loss falls to {told} "
            "of what it was, as 1/2, 2/3, 3/4, ... would: it is divided by the number of epochs so far",
        )
    return Observed("right", f"no fall by 1/2, 2/3, 3/4, ... at the ends of {len(pairs)} epochs")


def accumulation_shows(first: float, classes: int | None, micro_batches: int | None) -> Observed:
    """Is the first loss that of guessing among the classes, ln C, or a k-th of it with k micro-batches?

    Args:
        first: the loss of the first step.
        classes: the number C of classes, where known.
        micro_batches: k, where known.
    """
    if classes is None or not math.isfinite(first):
        return Observed("can't tell", "the number of classes isn't known")
    guessing = math.log(classes)
    if first >= _BELOW * guessing:
        return Observed(
            "right",
            f"the first loss {first:.4g} is at least {_BELOW} of that of guessing among {classes} classes, "
            f"{guessing:.4g}",
        )
    pieces = micro_batches or 1
    if pieces > 1 and abs(first * pieces / guessing - 1) < _NEAR:
        return Observed(
            "wrong",
            f"the first loss {first:.4g} is 1/{pieces} of that of guessing among {classes} classes, {guessing:.4g}: "
            f"a batch has {pieces} micro-batches, and is divided by their number once too often",
        )
    came = f"the first loss {first:.4g} is below {_BELOW} of that of guessing among {classes} classes, {guessing:.4g}"
    return Observed("can't tell", came)
