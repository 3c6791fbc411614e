"""What the server answers: pages, the files that they need, and the events of runs that are followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tvlars_probe.board import contents, following, list_page, run_page, static
from tvlars_probe.board.elements import page, text
from tvlars_probe.board.following import Following
from tvlars_probe.board.guard import Guard
from tvlars_probe.board.listing import RunList
from tvlars_probe.board.making import SHARE, Maker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

MOST_COMPARED = 32
"""Runs that can be compared at one time."""

HEARTBEAT = 10.0
"""Seconds after which a page is sent a sign of life, whether there is news or not."""

_CHUNK = 1 << 16


class Board:
    """Answers requests for the runs below a folder.

    Args:
        folder: the folder; it may be a run itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list = RunList(folder)
        # What is quick doesn't wait for what is slow.
        self._maker, self._quick, self._files = Maker(), Maker(), Maker()
        self.following = Following(folder, self._due)
        self._is_ending = False

    def application(self, *, token: str, port: int) -> Guard:
        """The whole as an ASGI application, for a server at that port."""
        routes = [
            Route("/", self._list_page),
            Route("/rows", self._list_rows),
            Route("/run", self._run_page),
            Route("/compare", self._compare_page),
            Route("/events", self._events),
            Route("/charts", self._charts),
            Route("/sections", self._sections),
            Route("/report", self._report),
            *(Route(f"/{name}", partial(self._file, name)) for name in static.FILES),
        ]
        errors: dict[Any, Any] = {HTTPException: _not_answered}
        inner = Starlette(routes=routes, exception_handlers=errors, lifespan=self._life)
        inner.router.redirect_slashes = False  # it knows no token, and would lead to addresses without it
        return Guard(inner, token=token, port=port)

    def hang_up(self) -> None:
        """End what pages listen to, which has no end of its own: the server waits for it when it is to end."""
        self._is_ending = True
        self.following.wake()

    @contextlib.asynccontextmanager
    async def _life(self, _: Any) -> AsyncIterator[None]:
        warming = asyncio.create_task(self._warm_up())
        yield
        warming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await warming
        self.following.close()
        for maker in (self._maker, self._quick, self._files):
            maker.close()

    async def _warm_up(self) -> None:
        """Do what the first pages would wait for: list the runs, load Vega and what verdicts are made with."""
        await self._quick.get("rows", object, self._made_rows, at_least=0.5)
        await self._file_content("vega.js")
        await self._maker.call(contents.warm_up)

    async def _list_page(self, _: Request) -> Response:
        return HTMLResponse(list_page.list_page(self.folder))

    async def _list_rows(self, request: Request) -> Response:
        """The rows as JSON, or nothing where the page has them already (``known``)."""
        made = await self._quick.get("rows", object, self._made_rows, at_least=0.5)
        known, content = made.value
        return Response(status_code=204) if request.query_params.get("known") == known else _json(content)

    def _made_rows(self) -> tuple[str, bytes]:
        runs = self._list.runs()
        html = list_page.rows(runs)
        known = str(hash(html))
        more = max(len(runs) - list_page.MOST_RUNS, 0)
        content = {"known": known, "html": html, "left_out": more, "is_behind": self._list.is_behind}
        return known, json.dumps(content).encode()

    async def _run_page(self, request: Request) -> Response:
        key, path = await self._one(request)
        return HTMLResponse(run_page.run_page(key, self._list.name_of(path)))

    async def _compare_page(self, request: Request) -> Response:
        found = await self._several(request)
        return HTMLResponse(run_page.compare_page([*found], [self._list.name_of(path) for path in found.values()]))

    async def _charts(self, request: Request) -> Response:
        key, path = await self._one(request)
        make = partial(contents.charts, self.folder, path)
        made = await self._quick.get(("charts", key), partial(contents.stamp, [path]), make)
        return _json(made.value)

    async def _sections(self, request: Request) -> Response:
        found = await self._several(request)
        paths = [*found.values()]
        key = ("sections", *found)
        followed = self.following.get(next(iter(found)))
        # Of a run that trains many pages may be open: they share what was made for the first.
        goes_on = len(paths) == 1 and followed is not None and followed.state.may_go_on
        at_least = following.AT_LEAST["sections"] if goes_on else None
        make = partial(contents.sections, self.folder, paths)
        made = await self._maker.get(key, partial(contents.stamp, paths), make, at_least=at_least)
        again = max(following.AT_LEAST["sections"], SHARE * made.seconds)
        return _json(contents.with_cost(made.value, made.seconds, again))

    def _due(self, key: str, name: str) -> float:
        maker = self._quick if name == "charts" else self._maker
        return maker.due((name, key), following.AT_LEAST[name])

    async def _report(self, request: Request) -> Response:
        found = await self._several(request)
        paths = [*found.values()]
        try:
            content = await self._maker.call(partial(contents.whole_report, self.folder, paths))
        except Exception as error:  # of a stranger's runs
            return _message("No report", contents.why_not(error))
        name = contents.file_name([self._list.name_of(path) for path in paths])
        headers = {
            "content-disposition": f'attachment; filename="{name}"',
            # Its scripts are its own: should a browser show it all the same, it is of no origin and reaches nothing.
            "content-security-policy": "sandbox; default-src 'none'",
            "content-length": str(len(content)),
        }

        async def chunks() -> AsyncIterator[bytes]:
            for first in range(0, len(content), _CHUNK):
                yield content[first : first + _CHUNK]

        return StreamingResponse(chunks(), media_type="text/html; charset=utf-8", headers=headers)

    async def _events(self, request: Request) -> Response:
        """News of a run as server-sent events, as long as the page is open."""
        key, path = await self._one(request)
        headers = {"x-accel-buffering": "no"}
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=headers)
        joined = self.following.join(key, path)
        if joined is None:
            raise HTTPException(503, f"{following.MOST_FOLLOWED} runs are followed already: close a page.")
        followed, listener = joined

        async def stream() -> AsyncIterator[str]:
            try:
                yield ": begun\n\n"
                while not self._is_ending and not await request.is_disconnected():
                    try:
                        await asyncio.wait_for(listener.changed.wait(), HEARTBEAT)
                    except TimeoutError:
                        yield ": alive\n\n"
                        continue
                    if news := listener.take():
                        yield f"data: {json.dumps(news)}\n\n"
            finally:
                followed.leave(listener)

        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    async def _file(self, name: str, _: Request) -> Response:
        # The token is in the address: another server's pages don't meet these.
        headers = {"cache-control": "private, max-age=3600"}
        return Response(await self._file_content(name), media_type=static.FILES[name], headers=headers)

    async def _file_content(self, name: str) -> bytes:
        made = await self._files.get(name, lambda: 0, partial(static.content, name))
        content: bytes = made.value
        return content

    async def _one(self, request: Request) -> tuple[str, Path]:
        """The run that is asked for, with its key."""
        found = await self._several(request)
        if len(found) > 1:
            raise HTTPException(404, "One run at a time is shown: compare several.")
        return next(iter(found.items()))

    async def _several(self, request: Request) -> dict[str, Path]:
        """The runs that are asked for, by their keys, in order."""
        keys = [*dict.fromkeys(request.query_params.getlist("run"))]
        if len(keys) > MOST_COMPARED:
            raise HTTPException(404, f"{len(keys)} runs can't be compared: tick {MOST_COMPARED} at most.")
        found = await asyncio.to_thread(lambda: {key: self._list.find(key) for key in keys})
        if not found or None in found.values():
            raise HTTPException(404, "There is no such run below the folder: it may have been moved or removed.")
        return {key: path for key, path in found.items() if path is not None}


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _not_answered(request: Request, error: HTTPException) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return _message("Not found", str(error.detail), error.status_code)
    return PlainTextResponse(f"{error.detail}\n", error.status_code)


def _message(title: str, told: str, status: int = 200) -> Response:
    main = f'<p class="trouble">{text(told, 800)}</p>'
    return HTMLResponse(page("message", title, '<a href=".">All runs</a>', main), status)
