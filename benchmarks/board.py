"""What `board` costs: to list 200 runs, to show one of 10,000 tensors, and to follow one that is being written.

    python -m benchmarks.board

The board is a process of its own, asked over HTTP as a page asks. A fresh one lists the runs for the first time. The
run that is followed has a real recorder, in a process of its own. Its page asks for the charts of loss and accuracy
whenever it is told to; the verdicts, which are made when somebody scrolls to them, are measured by themselves.
The processor time of the board, its start left out, is taken over the time that the page is open.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.commands import make_runs
from benchmarks.figures import Figure, save
from benchmarks.watching import STEPS, make_large, train

if TYPE_CHECKING:
    from collections.abc import Generator


class Board:
    """A board in a process of its own, and what a page asks it."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "tvlars_probe", "board", str(folder)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:(\d+)(/[\w-]+/)", line) for line in self.process.stdout)
        address = next(match for match in found if match)
        self.port, self.token = int(address[1]), address[2]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def ask(self, path: str) -> tuple[float, bytes]:
        """Seconds to the last byte of an answer, and its bytes."""
        with contextlib.closing(self.connect()) as connection:
            began = time.perf_counter()
            connection.request("GET", self.token + path)
            content = connection.getresponse().read()
            return time.perf_counter() - began, content

    def keys(self) -> list[str]:
        return re.findall(r'data-key="(\w+)"', json.loads(self.ask("rows")[1])["html"])

    def news(self, key: str) -> Generator[dict[str, Any], None, None]:
        """What an open page of a run is told."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", f"{self.token}events?run={key}")
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def spent(self) -> float:
        """Seconds of the processor so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def warm(self) -> None:
        """Wait until what it does at its start is done."""
        self.ask("vega.js")
        before, now = -1.0, self.spent()
        while now > before:
            time.sleep(0.5)
            before, now = now, self.spent()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def list_runs(folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the first list of fresh boards, and of the lists after it."""
    first, later = [], []
    for _ in range(rounds):
        with contextlib.closing(Board(folder)) as board:
            first.append(board.ask("rows")[0])
            board.warm()
            later.append(board.ask("rows")[0])
    return first, later


def show_large(path: Path) -> dict[str, float]:
    """Seconds until a large run's page answers, until its figures, charts and verdicts are there, in a warm board.

    ``list`` is the slowest list while the verdicts are being made.
    """
    with contextlib.closing(Board(path.parent)) as board:
        board.warm()
        (key,) = board.keys()
        took = {"page": board.ask(f"run?run={key}")[0]}
        began = time.perf_counter()
        news = board.news(key)
        next(news)
        took["figures"] = time.perf_counter() - began
        took["charts"] = board.ask(f"charts?run={key}")[0]
        lists: list[float] = []
        done = threading.Event()

        def ask_for_lists() -> None:
            while not done.is_set():
                lists.append(board.ask("rows")[0])

        asking = threading.Thread(target=ask_for_lists)
        asking.start()
        took["verdicts"] = board.ask(f"sections?run={key}")[0]
        done.set()
        asking.join()
        news.close()
        return took | {"list": max(lists)}


def follow(path: Path, tensors: int, seconds: float) -> tuple[float, float, str]:
    """Processor seconds of a board while a page of a run that trains is open, seconds, and what the page asked for."""
    path.parent.mkdir(parents=True)
    asked = {"news": 0, "charts": 0}
    with contextlib.closing(Board(path.parent)) as board:
        board.warm()
        trainer = multiprocessing.get_context("spawn").Process(target=train, args=(str(path), tensors, seconds))
        trainer.start()
        while not (path / "run.json").exists():
            time.sleep(0.1)
        (key,) = board.keys()
        before, began = board.spent(), time.perf_counter()
        for news in board.news(key):
            asked["news"] += 1
            if "charts" in news:
                asked["charts"] += 1
                board.ask(f"charts?run={key}")
            if "completed" in news.get("state", ""):
                break
        spent, ended = board.spent() - before, time.perf_counter()
        trainer.join()
        board.ask(f"sections?run={key}")
        verdicts = board.spent() - before - spent
    return spent, ended - began, f"{asked['news']} news, {asked['charts']} charts; verdicts {verdicts:.1f} s each time"


@click.command()
@click.option("--count", default=200, show_default=True, help="Runs in the list.")
@click.option("--large", default=10_000, show_default=True, help="Tensors of the large run.")
@click.option("--tensors", default=1000, show_default=True, help="Tensors of the run that is followed.")
@click.option("--seconds", default=180.0, show_default=True, help="How long it is followed.")
@click.option("--rounds", default=5, show_default=True)
def main(count: int, large: int, tensors: int, seconds: float, rounds: int) -> None:
    """Print the costs."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_runs(home / "runs", count)
        first, later = list_runs(home / "runs", rounds)
        make_large(home / "large" / "run", large, finished=False)
        took = show_large(home / "large" / "run")
        spent, followed, asked = follow(home / "followed" / "run", tensors, seconds)
    size = f"{large:,} tensors, {STEPS} steps"
    told = f"{spent:.1f} s of processor in {followed:.0f} s: {asked}"
    figures = [
        Figure(what=f"first list of {count} runs", value=statistics.median(first), aim=1, unit="s",
               note=f"later ones {1000 * statistics.median(later):.0f} ms"),
        Figure(what=f"page of a run, {size}", value=took["page"], aim=1, unit="s",
               note=f"its figures come after {took['figures']:.1f} s more, its loss after {took['charts']:.1f} s more"),
        Figure(what="the list while its verdicts are made", value=took["list"], aim=1, unit="s",
               note=f"the verdicts and their charts took {took['verdicts']:.1f} s"),
        Figure(what=f"a core's share while a run of {tensors:,} tensors is followed", value=spent / followed, aim=0.05,
               note=told),
    ]  # fmt: skip
    save("board", figures)


if __name__ == "__main__":
    main()
