"""What stands before every page: only who has the address with its token, from this machine, and only reading."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD")

NAMES = ("127.0.0.1", "localhost")
"""What this machine is called in a Host header."""

_HTTP_PORT = 80

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles come from this server's own files alone, and pages ask this server alone."""

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer that doesn't have its own of that name. No header lets another origin read one."""


class Guard:
    """Lets requests through to an application, or answers them itself.

    Refused are, in this order: a Host header that isn't this machine's (a stranger's name that leads to 127.0.0.1 would
    make the stranger's pages of one origin with these), any method but GET and HEAD, and an address without the token.
    Whoever lacks the token gets one answer, whatever is asked for. The application sees addresses without the token.

    Args:
        application: what answers.
        token: the first part of every address.
        port: the port of the server, which the Host header names.
    """

    def __init__(self, application: ASGIApp, *, token: str, port: int) -> None:
        self._application, self._token = application, token.encode()
        self._hosts = {f"{name}:{port}".encode() for name in NAMES}
        if port == _HTTP_PORT:  # browsers don't name it
            self._hosts |= {name.encode() for name in NAMES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no other protocol is spoken: the server closes the connection

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _completed(message["headers"])
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            await _refuse(with_headers, 403, "Forbidden: the Host header isn't this machine's.")
        elif scope["method"] not in METHODS:
            await _refuse(with_headers, 405, "Only GET and HEAD are answered.", allow=", ".join(METHODS))
        else:
            first, slash, rest = scope["path"].removeprefix("/").partition("/")
            if not secrets.compare_digest(first.encode(errors="surrogateescape"), self._token):
                await _refuse(with_headers, 404, "Not found: open the address that the command printed.")
            elif not slash:  # a page there would look for everything that it needs beside the token, not below it
                await _refuse(with_headers, 308, "Here a slash is missing.", location=f"/{self._token.decode()}/")
            else:
                inner: dict[str, Any] = {**scope, "path": f"/{rest}", "raw_path": b"", "root_path": ""}
                await self._application(inner, receive, with_headers)


def _completed(given: Any) -> list[tuple[bytes, bytes]]:
    """The headers given, and those of `HEADERS` that they lack."""
    there = {bytes(name).lower() for name, _ in given}
    further = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there]
    return [*given, *further]


async def _refuse(send: Send, status: int, text: str, **headers: str) -> None:
    own = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(text) + 1), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in own.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
