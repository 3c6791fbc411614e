"""Serves the board on this machine alone, until it is interrupted."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST, PORT = "127.0.0.1", 8765


def listening(port: int | None) -> socket.socket:
    """A socket that listens on this machine's own address.

    Args:
        port: its port; None takes `PORT`, or any free one where that is taken.

    Raises:
        UserError: the port can't be had.
    """
    wanted = PORT if port is None else port
    try:
        return _bound(wanted)
    except OSError as error:
        if port is not None:
            raise UserError(
                f"--port {port} can't be had: {error.strerror or error}; leave it out to have a free one chosen"
            ) from None
    return _bound(0)


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def serve(folder: Path, listener: socket.socket, token: str, begun: Callable[[str], None]) -> None:
    """Answer until a signal comes.

    Args:
        folder: the folder of runs.
        listener: the socket, which is closed at the end.
        token: the token that every address begins with.
        begun: called once with the address, when it is answered.
    """
    import uvicorn

    from tvlars_probe.board.application import Board

    port = listener.getsockname()[1]
    config = uvicorn.Config(
        Board(folder).application(token=token, port=port),
        # The log of requests would hold the token.
        access_log=False,
        log_level="error",
        log_config=None,
        ws="none",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,  # pages that are open listen on without end
    )

    class Server(uvicorn.Server):
        """A server that says when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                begun(f"http://{HOST}:{port}/{token}/")

    with listener:
        Server(config).run(sockets=[listener])
