"""Random numbers that depend only on what they are for: a function of (seed, epoch, sample, view).

The generator is counter-based: it hashes a counter by the finaliser of SplitMix64 (Steele, Lea, Flood 2014). Ranks,
workers, batch size and order make no difference, and a continued run needs no saved state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio, SplitMix64's step from one counter to the next
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(indices: NDArray[np.int64], count: int, *, seed: int, epoch: int, view: int = 0) -> NDArray[np.float64]:
    """Independent uniform numbers for each sample.

    Args:
        indices: the samples' indices in the data set.
        count: how many numbers each sample gets.
        seed: seed of the run.
        epoch: index of the epoch, from 0.
        view: which of a sample's views the numbers are for; 0 is classification.

    Returns:
        (samples, count) numbers in [0, 1), multiples of 2⁻⁵³.
    """
    # An array of one element: uint64 arrays wrap around silently, where NumPy's scalars would warn of overflow.
    key = np.array([0], dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _mix(key + np.uint64(part & 0xFFFFFFFFFFFFFFFF) + _GOLDEN)
    # Without the inner hash, two keys that differ in low bits alone would give their samples the same set of states.
    samples = _mix(_mix(indices.astype(np.uint64) + _GOLDEN) ^ key)
    # From here on this is SplitMix64 with a state of its own for each sample.
    counters = samples[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN
    # A double holds 53 bits exactly; converting all 64 could round up to 1.
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
