"""Serves the board on this machine alone, until it is interrupted."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    import uvicorn

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
        return bound_to(wanted)
    except OSError as error:
        if port is not None:
            raise UserError(
                f"--port {port} can't be had: {error.strerror or error}; leave it out to have a free one chosen"
            ) from None
    return bound_to(0)


def bound_to(port: int) -> socket.socket:
    """A socket that listens at a port of this machine's own address; 0 is any free one.

    Raises:
        OSError: the port can't be had.
    """
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


def server_of(folder: Path, listener: socket.socket, token: str, begun: Callable[[str], None]) -> uvicorn.Server:
    """A server that answers on a socket once it is run with it.

    Args:
        folder: the folder of runs.
        listener: the socket.
        token: the token that every address begins with.
        begun: called once with the address, when it is answered.
    """
    import uvicorn

    from tvlars_probe.board.application import Board

    port = listener.getsockname()[1]
    board = Board(folder)
    config = uvicorn.Config(
        board.application(token=token, port=port),
        # The log of requests would hold the token.
        access_log=False,
        log_level="error",
        log_config=None,
        ws="none",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=5,
    )

    class Server(uvicorn.Server):
        _loop: asyncio.AbstractEventLoop | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            self._loop = asyncio.get_running_loop()
            if self.started:
                begun(f"http://{HOST}:{port}/{token}/")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self._loop is not None:  # a signal may come before pages can be open
                self._loop.call_soon_threadsafe(board.hang_up)
            # Answers that are cancelled now are no faults: uvicorn would print each with its traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            super().handle_exit(sig, frame)

    return Server(config)


def serve(folder: Path, listener: socket.socket, token: str, begun: Callable[[str], None]) -> None:
    """Answer until a signal comes. The arguments are those of `server_of`; the socket is closed at the end."""
    with listener:
        server_of(folder, listener, token, begun).run(sockets=[listener])
