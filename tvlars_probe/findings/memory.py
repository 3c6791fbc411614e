"""What rules remember from one flush to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]


class OfTensors:
    """An array whose last dimension is the tensors. It follows the tensors where the optimizers get other ones.

    Args:
        blank: the values of a tensor that is new, of shape (..., 1).
    """

    def __init__(self, blank: NDArray[Any]) -> None:
        self._blank = blank
        self._names: Sequence[str] = ()
        self.values = np.empty((*blank.shape[:-1], 0), blank.dtype)

    def of(self, names: Sequence[str]) -> NDArray[Any]:
        """The array of these tensors; assign to `values` what is to be kept."""
        if names is not self._names:
            place = {name: k for k, name in enumerate(self._names)}
            before = np.concatenate([self.values, np.broadcast_to(self._blank, (*self.values.shape[:-1], 1))], axis=-1)
            self.values = before[..., [place.get(name, -1) for name in names]]
            self._names = names
        return self.values

    def remember(self, values: Mapping[str, Any]) -> None:
        """Take over the values of some tensors, by name; the others are blank. For arrays of one dimension."""
        self.values, self._names = np.array([*values.values()], dtype=self._blank.dtype), [*values]

    def by_name(self) -> dict[str, Any]:
        """The values, by name. For arrays of one dimension."""
        return dict(zip(self._names, self.values.tolist(), strict=True))


class Episodes:
    """Where tensors begin to break a rule. An episode ends in the first judged step in which the rule is kept."""

    def __init__(self) -> None:
        self._open = OfTensors(np.zeros(1, dtype=bool))

    @property
    def any_open(self) -> bool:
        """Whether any tensor breaks the rule, as far as is known."""
        return bool(self._open.values.any())

    def begun(self, broken: Flags, judged: Flags, names: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The steps and the tensors, as places in these arrays, in which episodes begin, in order of steps.

        Args:
            broken: whether the rule is broken, (steps, tensors).
            judged: whether the rule can be judged, (steps, tensors). In other steps an episode goes on.
            names: of the tensors.
        """
        was_open = self._open.of(names)
        broken = broken & judged
        some = np.flatnonzero(broken.any(axis=0) | was_open)
        if not len(some):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        rows = np.arange(len(broken))[:, None]
        # The last judged step up to each one: it says whether an episode is open.
        last = np.maximum.accumulate(np.where(judged[:, some], rows, -1), axis=0)
        open_after = np.where(
            last >= 0, np.take_along_axis(broken[:, some], np.maximum(last, 0), axis=0), was_open[some]
        )
        open_before = np.concatenate([was_open[some][None], open_after[:-1]])
        self._open.values = was_open.copy()
        self._open.values[some] = open_after[-1]
        at_row, at_column = np.nonzero(open_after & ~open_before)
        return at_row, some[at_column]

    def state(self) -> list[str]:
        """The names of the tensors whose episodes are open."""
        return [name for name, is_open in self._open.by_name().items() if is_open]

    def load(self, state: Sequence[str]) -> None:
        """Go on from a `state`."""
        self._open.remember(dict.fromkeys(state, True))
