"""A budget that threads share: what is large is made one at a time."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """An amount of which threads hold parts for a while.

    Args:
        amount: the whole. Who asks for more gets it when nobody else holds any.
    """

    def __init__(self, amount: int) -> None:
        self._amount, self._held = amount, 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def holding(self, part: int) -> Iterator[None]:
        """Wait until ``part`` is free, and hold it in the block."""
        with self._freed:
            self._freed.wait_for(lambda: not self._held or self._held + part <= self._amount)
            self._held += part
        try:
            yield
        finally:
            with self._freed:
                self._held -= part
                self._freed.notify_all()
