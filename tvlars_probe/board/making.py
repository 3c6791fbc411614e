"""Slow work beside the event loop: in a few threads, once for all who ask, and not again while nothing has changed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

THREADS = 2
"""Slow things that are made at one time; others wait."""

MOST_KEPT = 16
"""Results that are kept, the ones asked for last."""

SHARE = 60
"""A thing is made again at the earliest after so many times what it took: that is at most 1.7 % of a core."""


@dataclass(frozen=True, slots=True)
class Made:
    """A result.

    Attributes:
        value: what was made.
        stamp: what it was made from.
        seconds: what it took.
        at: when it was made, by `time.monotonic`.
    """

    value: Any
    stamp: Hashable
    seconds: float
    at: float


class Maker:
    """Makes things in threads and keeps them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="board-slow")
        self._kept: OrderedDict[Hashable, Made] = OrderedDict()
        self._being_made: dict[Hashable, asyncio.Future[Made]] = {}

    async def get(
        self, key: Hashable, stamp: Callable[[], Hashable], make: Callable[[], Any], *, at_least: float | None = None
    ) -> Made:
        """The thing of that key, made now or kept from before. Who asks for one that is being made waits for that.

        Args:
            key: what it is called.
            stamp: tells in a thread what it would be made from: while that is the same, the thing isn't made again.
            make: makes it, in a thread.
            at_least: seconds that a thing is kept whatever has changed; it is kept longer if making it took long.
                None: not at all.
        """
        if (future := self._being_made.get(key)) is None:
            future = asyncio.ensure_future(self._made(key, stamp, make, at_least))
            self._being_made[key] = future
            future.add_done_callback(lambda _: self._being_made.pop(key, None))
        # Who leaves mustn't take it from the others.
        return await asyncio.shield(future)

    async def _made(
        self, key: Hashable, stamp: Callable[[], Hashable], make: Callable[[], Any], at_least: float | None
    ) -> Made:
        kept = self._kept.get(key)
        if kept is not None and at_least is not None and time.monotonic() < _due(kept, at_least):
            return kept

        def work() -> Made:
            began, now = time.monotonic(), stamp()
            if kept is not None and kept.stamp == now:
                return kept
            value = make()
            ended = time.monotonic()
            return Made(value, now, ended - began, ended)

        made = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._kept[key] = made
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return made

    def due(self, key: Hashable, at_least: float) -> float:
        """When, by `time.monotonic`, a thing may be made again; infinite while it is being made."""
        if key in self._being_made:
            return math.inf
        kept = self._kept.get(key)
        return 0.0 if kept is None else _due(kept, at_least)

    async def call(self, make: Callable[[], Any]) -> Any:
        """Make something that isn't kept."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, make)

    def close(self) -> None:
        """Wait for nothing that hasn't begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _due(kept: Made, at_least: float) -> float:
    return kept.at + max(at_least, SHARE * kept.seconds)
