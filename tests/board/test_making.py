from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe.board.making import MOST_KEPT, Maker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def with_maker(use: Callable[[Maker], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        maker = Maker()
        try:
            return await use(maker)
        finally:
            maker.close()

    return asyncio.run(main())


def test_what_is_being_made_is_made_once_for_all_who_ask() -> None:
    made: list[int] = []
    go = threading.Event()

    def make() -> int:
        assert go.wait(60)
        made.append(1)
        return len(made)

    async def use(maker: Maker) -> list[Any]:
        asked = [asyncio.ensure_future(maker.get("a", lambda: 0, make)) for _ in range(5)]
        await asyncio.sleep(0)
        asked[0].cancel()  # one page is closed meanwhile
        go.set()
        return [one.value for one in await asyncio.gather(*asked[1:])]

    assert with_maker(use) == [1, 1, 1, 1]


def test_it_is_made_again_when_its_stamp_has_changed() -> None:
    made: list[str] = []

    async def use(maker: Maker) -> list[Any]:
        return [
            (await maker.get("a", lambda s=stamp: s, lambda s=stamp: made.append(s))).stamp
            for stamp in ("x", "x", "y", "y", "x")
        ]

    assert with_maker(use) == ["x", "x", "y", "y", "x"]
    assert made == ["x", "y", "x"]


def test_it_is_kept_for_a_while_whatever_has_changed() -> None:
    async def use(maker: Maker) -> list[Any]:
        return [(await maker.get("a", object, object, at_least=3600.0)).value for _ in range(3)]

    first, *others = with_maker(use)
    assert all(other is first for other in others)


def test_a_failure_reaches_who_asked_and_is_not_kept() -> None:
    async def use(maker: Maker) -> Any:
        with pytest.raises(ZeroDivisionError):
            await maker.get("a", lambda: 0, lambda: 1 // 0)
        return (await maker.get("a", lambda: 0, lambda: 7)).value

    assert with_maker(use) == 7


def test_no_more_than_some_are_kept() -> None:
    made: list[int] = []

    async def use(maker: Maker) -> None:
        for key in (*range(MOST_KEPT + 1), MOST_KEPT, 0):
            await maker.get(key, lambda: 0, lambda k=key: made.append(k))

    with_maker(use)
    assert made == [*range(MOST_KEPT + 1), 0]


def test_what_took_long_may_be_made_again_later() -> None:
    async def use(maker: Maker) -> tuple[float, float]:
        made = await maker.get("a", lambda: 0, lambda: None)
        object.__setattr__(made, "seconds", 8.0)
        return maker.due("a", 5.0) - made.at, maker.due("b", 5.0)

    assert with_maker(use) == (pytest.approx(480.0), 0.0)
