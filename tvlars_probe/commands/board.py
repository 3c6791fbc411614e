"""``tvlars-probe board``."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from typing import TYPE_CHECKING

import click

from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.traces.run_directory import RUNS_FOLDER

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("starlette", "uvicorn")


@click.command(cls=Command, name="board")
@click.argument("runs", type=RunPath(), default=RUNS_FOLDER)
@option(
    "--port",
    section="Server",
    type=click.IntRange(1, 65535),
    show_default=False,
    help="Port on 127.0.0.1. [default: 8765, or a free one]",
)
@option("--open/--no-open", "opens", section="Server", default=False, help="Open the address in a browser.")
def command(runs: Path, port: int | None, opens: bool) -> None:
    """Show the runs below a folder (runs/ by default) in a browser, while they train and after.

    It answers on this machine alone, and only with the address that it prints, which holds a new token each time.
    It writes nothing. Ctrl-C ends it.
    """
    if not runs.is_dir():
        raise RunDirectoryError(f"there is no folder {runs}: 'tvlars-probe train' makes runs under runs/")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"the board needs {' and '.join(missing)}: pip install 'tvlars-probe[board]'")
    from tvlars_probe.board.serving import PORT, listening, new_token, serve

    listener = listening(port)
    given = listener.getsockname()[1]
    if port is None and given != PORT:
        say(f"Port {PORT} is taken: {given} was chosen")

    def begun(address: str) -> None:
        say(f"Board of {runs}: {address}\nCtrl-C ends it")
        if opens:
            import webbrowser

            # A browser in the terminal returns when it is closed, and must be answered before.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    # uvicorn ends in order at a signal, and then raises it again.
    with contextlib.suppress(KeyboardInterrupt):
        serve(runs.absolute(), listener, new_token(), begun)
    say("Closed")
