"""What every rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tvlars_probe.findings.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.findings.window import Window


class FindingRule(ABC):
    """Looks at the steps of each flush, and says where something begins to be wrong.

    What it finds doesn't depend on where flushes part the steps. It makes one finding of a step, however many tensors
    break the rule in it.

    Attributes:
        name: its id, which never changes.
        about: what it finds, in half a sentence.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    @abstractmethod
    def find(self, window: Window) -> Iterator[Finding]:
        """Yield the findings of these steps, in order. The windows of a run come in order, without holes."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `load` takes: plain values."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""

    def finding(
        self, step: int, text: str, *, parameter: str | None = None, value: float | None, threshold: float | None
    ) -> Finding:
        """A finding of this rule."""
        return Finding(step, self.name, parameter, value, threshold, text)


def first_of_each_step(
    at_row: NDArray[np.intp], at_tensor: NDArray[np.intp], severity: NDArray[np.float64]
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield each row once: with the tensor of the highest severity, and the other ones.

    Args:
        at_row: rows, ascending.
        at_tensor: the tensor of each entry.
        severity: of shape (rows, tensors).
    """
    rows, begins = np.unique(at_row, return_index=True)
    for row, tensors in zip(rows.tolist(), np.split(at_tensor, begins[1:]), strict=True):
        order = np.argsort(-np.nan_to_num(severity[row, tensors], nan=np.inf), kind="stable")
        worst, *others = tensors[order].tolist()
        yield row, worst, others


def with_others(sentence: str, others: Sequence[int], names: Sequence[str]) -> str:
    """A sentence about one tensor, followed by how many others are like it and the names of two of them."""
    if not others:
        return sentence
    some = ", ".join(names[k] for k in others[:2]) + (", ..." if len(others) > 2 else "")
    return f"{sentence}; likewise {len(others)} other{'s' if len(others) > 1 else ''}: {some}"
