"""Which layers are sent each for itself: those furthest from their own median, in a set that changes little."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_AT_ONCE = 20
"""Layers that are sent each for itself in one flush."""

MOST_EVER = 200
"""Layers that are sent each for itself at any time of a run: trackers keep a name for ever."""

_FAR = 2.0
"""The factor from its own median from which a layer takes the place of another."""


class Members:
    """Layers that are followed. One that was taken is sent in each flush, so that its curve goes on.

    Noise alone would put other layers furthest out in each flush. So the first ones stay, and a layer takes the place
    of another only where it is off its own median by a factor of 2 or more and the other isn't among the furthest; it
    is the one that hasn't been for the longest time that goes. A layer that isn't there any more, as those of an
    earlier phase of training, gives way to any other.

    Args:
        at_once: how many are followed at a time.
    """

    def __init__(self, at_once: int = MOST_AT_ONCE) -> None:
        self._at_once = at_once
        self._last_far: dict[str, int] = {}
        self._ever: set[str] = set()
        self._turn = 0

    @property
    def names(self) -> Sequence[str]:
        """The layers followed now."""
        return [*self._last_far]

    def renew(self, everybody: Sequence[str], far: Mapping[str, float]) -> None:
        """Take in what is far out now.

        Args:
            everybody: names of all layers that are there; where these are few enough, all are followed.
            far: of the layers furthest from their own median, the factor.
        """
        self._turn += 1
        there = {*everybody}
        if len(everybody) <= self._at_once:
            self._last_far = dict.fromkeys(everybody, self._turn)
            self._ever |= {*everybody}
            return
        self._last_far |= {name: self._turn for name in far if name in self._last_far}
        for name in sorted(far, key=lambda name: -far[name]):
            if name in self._last_far or (name not in self._ever and len(self._ever) >= MOST_EVER):
                continue
            if len(self._last_far) >= self._at_once:
                oldest = min(self._last_far, key=lambda one: (one in there, self._last_far[one]), default=None)
                if oldest is None:
                    continue
                if oldest in there and (far[name] < _FAR or self._last_far[oldest] == self._turn):
                    continue
                del self._last_far[oldest]
            self._last_far[name] = self._turn
            self._ever.add(name)
