"""A board that is served in a thread, and asked as any program may ask: byte by byte, whatever the address."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe.board.serving import HOST, bound_to, server_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "a-token-of-tests"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A board that answers."""

    folder: Path
    port: int
    open: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/{TOKEN}/"

    def ask(self, path: str, *, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
        """Ask for a path as it stands: nothing in it is resolved or quoted."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, value in {"Host": host or f"{HOST}:{self.port}", **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def get(self, path: str) -> Answer:
        """What is at a path below the token."""
        return self.ask(f"/{TOKEN}/{path}")

    def keys(self) -> dict[str, str]:
        """By the last part of each run's name, its key."""
        from tvlars_probe.board.listing import RunList

        return {run.name.rpartition("/")[2]: run.key for run in RunList(self.folder).runs()}

    def events(self, key: str) -> Iterator[dict[str, Any]]:
        """The news of a run, as a page has them."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        self.open.append(connection)
        connection.request("GET", f"/{TOKEN}/events?run={key}")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], Served]]:
    """Serve a folder until the module's tests are done."""
    with contextlib.ExitStack() as ends:

        def start(folder: Path) -> Served:
            listener, begun = bound_to(0), threading.Event()
            ends.callback(listener.close)
            server = server_of(folder, listener, TOKEN, lambda _: begun.set())
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            served = Served(folder, listener.getsockname()[1])

            def stop() -> None:
                for connection in served.open:
                    connection.close()
                server.should_exit = True
                thread.join(60)
                assert not thread.is_alive()

            ends.callback(stop)
            assert begun.wait(60)
            return served

        yield start
