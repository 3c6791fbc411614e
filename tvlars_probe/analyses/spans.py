"""How many updates a recorded step stands for, where not every update is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spans(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The updates from each recorded step to the next one, (T,): what is seen at a step is taken to last until then.

    The last one's are taken to be as many as those of the one before. A single step stands for one update.
    """
    if len(steps) < 2:
        return np.ones(len(steps), np.int64)
    between = np.diff(steps)
    return np.append(between, between[-1])


def settled_from(steps: NDArray[np.int64], share: float) -> int:
    """The row of the recorded step in whose span this share of the updates ends; 0 where there are no steps.

    By updates, not by rows: a run may have been recorded more densely in one part than in another.
    """
    if not len(steps):
        return 0
    whole = int(steps[-1] - steps[0] + spans(steps)[-1])
    return int(np.searchsorted(steps - steps[0], share * whole, side="right")) - 1
