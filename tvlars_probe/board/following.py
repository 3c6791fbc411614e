"""One follower of a run for all pages that show it, from the first that is opened to the last that is closed."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tvlars_probe.board import run_page
from tvlars_probe.board.elements import text
from tvlars_probe.board.listing import refuse_leading_out
from tvlars_probe.errors import UserError
from tvlars_probe.live.live_run import LiveRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvlars_probe.live.state import LiveState

INTERVAL = 1.0
"""Seconds between two looks at a run that trains."""

IDLE_INTERVAL = 3.0
"""The same for a run that doesn't: it may be continued."""

AT_LEAST = {"charts": 5.0, "sections": 30.0}
"""Seconds between two renewals of the charts of loss and accuracy, and of the verdicts with their charts."""

MOST_FOLLOWED = 16
"""Runs that are followed at one time."""


class Listener:
    """An open page: what it hasn't been sent yet. What changes twice meanwhile is sent once.

    Attributes:
        changed: set while there is something to send.
    """

    def __init__(self, news: dict[str, Any]) -> None:
        self._news: dict[str, Any] = {}
        self.changed = asyncio.Event()
        if news:
            self.tell(news)

    def tell(self, news: dict[str, Any]) -> None:
        """Have this sent."""
        self._news |= news
        self.changed.set()

    def take(self) -> dict[str, Any]:
        """What is to be sent now."""
        news, self._news = self._news, {}
        self.changed.clear()
        return news


class Followed:
    """A run that pages look at.

    What pages are told is one dictionary: HTML by name of a part, what a screen reader is to say, and the numbers
    ``charts`` and ``sections``, which grow when a page is to ask for these again.

    Args:
        folder: the folder that is served: no link of the run may lead out of it.
        path: the run directory.
        due: when, by `time.monotonic`, ``"charts"`` and ``"sections"`` of this run may be made again.
    """

    def __init__(self, folder: Path, path: Path, due: Callable[[str], float]) -> None:
        self._folder, self._path, self._due = folder, path, due
        self._live = LiveRun(path)
        self._listeners: set[Listener] = set()
        self._shown: LiveState | None = None
        self._parts: dict[str, str] = {}
        self._numbers = {"charts": 0, "sections": 0}
        self._is_behind = dict.fromkeys(self._numbers, False)
        self._told_at = dict.fromkeys(self._numbers, -math.inf)

    @property
    def state(self) -> LiveState:
        """The run as it was at the last look."""
        return self._live.state

    @property
    def is_wanted(self) -> bool:
        """Whether a page is open."""
        return bool(self._listeners)

    def join(self) -> Listener:
        """A page is opened."""
        known = {**self._parts, **self._numbers} if self._parts else {}
        listener = Listener(known)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """A page is closed."""
        self._listeners.discard(listener)

    def look(self) -> dict[str, Any]:
        """Read what is new; what is to be told of it. Called in a thread, one call at a time.

        Raises:
            RunDirectoryError: a link of the run leads out of the folder.
        """
        refuse_leading_out(self._folder, self._path)
        state = self._live.renew()
        before, self._shown = self._shown, state
        told: dict[str, Any] = {}
        if state is not before or "said" not in self._parts:  # pages show it, and not that it failed
            parts = run_page.parts(state) | {"said": run_page.said(state)}
            told = {name: html for name, html in parts.items() if html != self._parts.get(name)}
            self._parts = parts
            if before is None or _made_of(state) != _made_of(before):
                self._is_behind = dict.fromkeys(self._is_behind, True)
        now = time.monotonic()
        for name, is_behind in self._is_behind.items():
            due = self._due(name)
            if state.may_go_on:  # pages don't ask at once for what they are told of
                due = max(due, self._told_at[name] + AT_LEAST[name])
            elif due < math.inf:  # the last renewal waits only while an earlier one is being made
                due = now
            if is_behind and now >= due:
                self._numbers[name] += 1
                self._is_behind[name], self._told_at[name] = False, now
                told[name] = self._numbers[name]
        return self._numbers | told if before is None else told

    def fail(self, error: Exception) -> dict[str, Any]:
        """What is told where the run can't be read; nothing where that was told before."""
        why = str(error) if isinstance(error, UserError) else repr(error)
        told = f'<p class="trouble" role="alert">This run can\'t be followed: {text(why, 600)}</p>'
        parts = {"state": told, **dict.fromkeys(("findings", "furthest", "sharpness"), "")}
        if parts == self._parts:
            return {}
        self._parts = parts
        return {**parts, **self._numbers}

    def wake(self) -> None:
        """Have all pages look whether there is something to send."""
        for listener in self._listeners:
            listener.changed.set()

    def tell(self, news: dict[str, Any]) -> None:
        """Tell all pages."""
        for listener in self._listeners:
            listener.tell(news)


def _made_of(state: LiveState) -> tuple[Any, ...]:
    """What charts and verdicts are made anew for: rows, another run at the same place, another status."""
    return state.run_id, state.status, state.steps_done, state.epoch


class Following:
    """All runs that pages look at.

    Args:
        folder: the folder that is served.
        due: when, by `time.monotonic`, a thing of a run (by the run's key and the thing's name) may be made again.
    """

    def __init__(self, folder: Path, due: Callable[[str, str], float]) -> None:
        self._folder, self._due = folder, due
        self._followed: dict[str, Followed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="board-follow")

    def __len__(self) -> int:
        return len(self._followed)

    def get(self, key: str) -> Followed | None:
        """The run of that key, if it is followed."""
        return self._followed.get(key)

    def join(self, key: str, path: Path) -> tuple[Followed, Listener] | None:
        """Follow a run for one page more; None where too many runs are followed already."""
        followed = self._followed.get(key)
        if followed is None:
            if len(self._followed) >= MOST_FOLLOWED:
                return None
            followed = self._followed[key] = Followed(self._folder, path, lambda name: self._due(key, name))
            listener = followed.join()
            task = asyncio.ensure_future(self._follow(key, followed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return followed, listener
        return followed, followed.join()

    async def _follow(self, key: str, followed: Followed) -> None:
        loop = asyncio.get_running_loop()
        try:
            while followed.is_wanted:
                try:
                    news = await loop.run_in_executor(self._pool, followed.look)
                except Exception as error:  # a stranger's files: the page says so, and the server goes on
                    news = followed.fail(error)
                if news:
                    followed.tell(news)
                await asyncio.sleep(INTERVAL if followed.state.may_go_on else IDLE_INTERVAL)
        finally:
            del self._followed[key]

    def wake(self) -> None:
        """Have all pages of all runs look whether there is something to send."""
        for followed in self._followed.values():
            followed.wake()

    def close(self) -> None:
        """Follow no run any more."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
