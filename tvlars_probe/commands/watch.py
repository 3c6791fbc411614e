"""``tvlars-probe watch``."""

from __future__ import annotations

import json
import signal
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import click

from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import one_line, say
from tvlars_probe.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.text import Text

    from tvlars_probe.commands.terminal import Terminal
    from tvlars_probe.live.state import LiveState

INTERVAL = 1.0
"""Seconds between two looks."""

_MOMENT = 0.1
"""Seconds after which a signal is answered at the latest, between two looks."""

_LONGEST = 500
"""Characters of a finding that are printed: its text may be a stranger's."""


@click.command(cls=Command, name="watch")
@click.argument("run_or_folder", type=RunPath())
@option("--once", section="Output", is_flag=True, help="Print the state once and end.")
@option("--json", "as_json", section="Output", is_flag=True, help="With --once: for machines.")
def command(run_or_folder: Path, once: bool, as_json: bool) -> None:
    """Follow a run while it trains: progress, loss, the tensors furthest from their own median, sharpness, findings.

    Of a folder of runs it shows a line each, the one that was written last first. It only reads, ends when the run
    ends, and can be ended with Ctrl-C.
    """
    from tvlars_probe.traces.manifest import FILE_NAME, Manifest

    if as_json and not once:
        raise click.UsageError("--json prints the state once: give --once with it")
    path = run_or_folder
    # A folder may hold runs only later, but it must be there.
    if not path.is_dir():
        raise RunDirectoryError(f"there is no run or folder {path}: 'tvlars-probe runs' lists the runs below a folder")
    if (path / "trace").is_dir():
        # Refuses a run that has lost its manifest: it is no folder in which runs may appear.
        Manifest.load(path)
    if (path / FILE_NAME).exists():
        _print_run(path, as_json) if once else _follow_run(path)
    else:
        _print_folder(path, as_json) if once else _follow_folder(path)


def _print_run(path: Path, as_json: bool) -> None:
    from tvlars_probe.live.live_run import LiveRun

    state = LiveRun(path).renew()
    _refuse_unreadable(state)
    if as_json:
        click.echo(json.dumps(state.as_plain(), indent=1, allow_nan=False))
        return
    from tvlars_probe.commands.watch_lines import run_lines

    console, plain = _console()
    _print(console, run_lines(state, _now(), console.width, plain=plain))


def _print_folder(path: Path, as_json: bool) -> None:
    from tvlars_probe.live.live_runs import LiveRuns

    runs = LiveRuns(path)
    if as_json:
        keys = {"losses", "furthest", "sharpness"}  # what a list doesn't read, or not for every run
        rows = [{key: value for key, value in s.as_plain().items() if key not in keys} for s in runs.renew()]
        click.echo(json.dumps(rows, indent=1, allow_nan=False))
        return
    from tvlars_probe.commands.watch_lines import list_lines

    console, plain = _console()
    states = runs.renew(_rows_that_fit(console))
    if not states:
        say(f"No runs below {path}")
        return
    _print(console, list_lines(states, runs.count, _now(), console.width, plain=plain))


def _follow_run(path: Path) -> None:
    """Show a run until it ends."""
    from tvlars_probe.commands.watch_lines import run_lines, summary
    from tvlars_probe.live.live_run import LiveRun

    console, plain = _console()
    run = LiveRun(path)
    _refuse_unreadable(run.renew())

    def lines(height: int | None) -> list[Text]:
        return run_lines(run.state, _now(), console.width, height, plain=plain)

    told: set[Any] = set()
    last: Any = None

    def news() -> Iterator[str]:
        """What is new, in lines that are printed one after another where nothing can be renewed."""
        nonlocal last
        for finding in run.state.findings:
            if finding not in told:
                told.add(finding)
                yield one_line(str(finding))[:_LONGEST]
        now = (run.state.status, run.state.steps_done, run.state.trouble)
        if now != last:  # a run that is resumed comes to the same steps again
            last = now
            yield summary(run.state, plain=plain) + (f"  {one_line(run.state.trouble)}" if run.state.trouble else "")

    with ByHand() as ended:
        _renew(console, lines, news, lambda: run.renew().may_go_on, ended)
    ended.leave(lambda: summary(run.state, plain=plain))
    _print(console, lines(None if _is_log(console) else console.height - 1))
    if run.state.status == "gone":
        raise RunDirectoryError(f"{path} has vanished while it was watched: nothing was changed by watching it")


def _follow_folder(path: Path) -> None:
    """Show a line for each run until somebody ends it."""
    from rich.text import Text

    from tvlars_probe.analyses.wording import counted
    from tvlars_probe.commands.watch_lines import list_lines, summary
    from tvlars_probe.live.live_runs import LiveRuns

    console, plain = _console()
    runs = LiveRuns(path)
    states: list[LiveState] = []

    def look() -> bool:
        states[:] = runs.renew(_rows_that_fit(console))
        return True

    def lines(height: int | None) -> list[Text]:
        none = [Text(one_line(f"No runs below {path}"), no_wrap=True)]
        return list_lines(states, runs.count, _now(), console.width, plain=plain)[:height] if states else none

    told: dict[str, tuple[Any, ...]] = {}

    def news() -> Iterator[str]:
        for state in states:
            now = (state.status, state.steps_done)
            if told.get(state.path) != now:
                told[state.path] = now
                yield summary(state, plain=plain)

    with ByHand() as ended:
        look()
        _renew(console, lines, news, look, ended)
    ended.leave(lambda: f"{one_line(str(path))}: {counted(runs.count, 'run')}")


def _renew(
    console: Terminal,
    lines: Callable[[int | None], list[Text]],
    news: Callable[[], Iterator[str]],
    look: Callable[[], bool],
    ended: ByHand,
) -> None:
    """Show the lines, or on what is no terminal the news, until ``look`` says that nothing more will come."""
    if _is_log(console):
        while True:
            for line in news():
                click.echo(line)
            if not look() or ended.within(INTERVAL):
                return
    from rich.console import Group
    from rich.live import Live

    # The other screen: what is on this one stays, and no resizing leaves anything behind.
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        shown: Any = None
        while True:
            goes_on, now = look(), lines(console.height)
            key = console.size, [line.plain for line in now]
            if key != shown:
                live.update(Group(*now), refresh=True)
                shown = key
            if not goes_on or ended.within(INTERVAL):
                return


class ByHand:
    """A context in which Ctrl-C and SIGTERM end the watching once the look that is being made is over.

    An exception, as Python makes of Ctrl-C, could come anywhere, and be lost in what the libraries do at that moment.
    A second signal acts at once. Outside the main thread the signals are left as they are.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, _: object) -> None:
        # No more than this: a handler that took the lock of what is waited for would wait for itself.
        self._number = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def within(self, seconds: float) -> bool:
        """Wait for so long; whether somebody has ended it."""
        until = time.monotonic() + seconds
        while self._number is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _MOMENT))  # a handler that returns doesn't end a sleep
        return self._number is not None

    def leave(self, last: Callable[[], str]) -> None:
        """End the program if a signal has ended the watching: after Ctrl-C with one line."""
        if self._number == signal.SIGINT:
            click.echo(last())
        if self._number is not None:
            click.get_current_context().exit(128 + self._number)


def _refuse_unreadable(state: LiveState) -> None:
    from tvlars_probe.live.state import DAMAGED, GONE

    if state.status in (DAMAGED, GONE):
        raise RunDirectoryError(state.trouble or f"{state.path} can't be read")


def _console() -> tuple[Terminal, bool]:
    """The terminal, and whether it takes ASCII alone."""
    from tvlars_probe.commands.terminal import Terminal

    console = Terminal()
    return console, not console.encoding.lower().startswith("utf")


def _is_log(console: Terminal) -> bool:
    """Whether lines can only follow one another."""
    return not console.is_terminal or console.is_dumb_terminal


def _rows_that_fit(console: Terminal) -> int:
    """Runs for which there is room beside the heading and the line about others; in a pipe as on 25 lines."""
    return max(1, console.height - 2)


def _print(console: Terminal, lines: list[Text]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _now() -> datetime:
    return datetime.now(UTC)
