"""The server and its command: an address printed once, one host, a clean end."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.board.runs import TrainedRun, everything_below
from tvlars_probe.board.serving import HOST, PORT, bound_to, listening, new_token, server_of
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_it_listens_on_this_machine_alone() -> None:
    with bound_to(0) as listener:
        assert listener.getsockname()[0] == HOST == "127.0.0.1"
        assert listener.family == socket.AF_INET


def test_a_port_that_is_taken_is_replaced_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_to(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port} can't be had: .*; leave it out"):
            listening(port)
        monkeypatch.setattr("tvlars_probe.board.serving.PORT", port)
        with listening(None) as other:
            assert other.getsockname()[1] not in (0, port)


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[\w-]{32}", token) for token in tokens)


def test_without_a_folder_or_the_packages_one_line_says_what_to_do(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("board", "nowhere")
    assert done.code == 2
    assert done.err == "Error: there is no folder nowhere: 'tvlars-probe train' makes runs under runs/\n"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    done = cli("board", tmp_path)
    assert done.code == 2
    assert done.err == "Error: the board needs uvicorn: pip install 'tvlars-probe[board]'\n"


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_a_port_that_is_none_is_refused(cli: Callable[..., Any], tmp_path: Path, port: str) -> None:
    assert cli("board", tmp_path, "--port", port).code == 2


def test_a_browser_that_returns_when_it_is_closed_is_answered(tmp_path: Path) -> None:
    asks = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=60); open(sys.argv[2], 'w').close()"
    (tmp_path / "browser.py").write_text(asks)
    (tmp_path / "runs").mkdir()
    browser = f"{sys.executable} {tmp_path / 'browser.py'} %s {tmp_path / 'answered'}"
    words = [sys.executable, "-m", "tvlars_probe", "board", str(tmp_path / "runs"), "--open"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "BROWSER": browser}) as board:
        until = time.monotonic() + 50
        while not (tmp_path / "answered").exists() and time.monotonic() < until:
            time.sleep(0.05)
        board.send_signal(signal.SIGTERM)
    assert (tmp_path / "answered").exists()


def test_a_signal_before_the_first_page_ends_it_too(tmp_path: Path) -> None:
    with bound_to(0) as listener:
        server = server_of(tmp_path, listener, "t", lambda _: None)
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_an_address_answers_and_ends(tmp_path: Path, end: signal.Signals) -> None:
    TrainedRun(tmp_path / "runs" / "one").train(3).end()
    before = everything_below(tmp_path)
    words = [sys.executable, "-m", "tvlars_probe", "board", str(tmp_path / "runs")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        said = [board.stdout.readline()]
        if "taken" in said[0]:  # by another board on this machine
            assert said[0].startswith(f"Port {PORT} is taken")
            said.append(board.stdout.readline())
        address = re.search(rf"http://{re.escape(HOST)}:(\d+)(/[\w-]{{32}}/)", said[-1])
        assert address is not None
        with contextlib.closing(http.client.HTTPConnection(HOST, int(address[1]), timeout=60)) as page:
            page.request("GET", f"{address[2]}rows")
            rows = page.getresponse().read().decode()
            key = re.search(r"data-key=..(\w+)", rows)
            assert key is not None
            page.request("GET", f"{address[2]}events?run={key[1]}")
            answer = page.getresponse()
            assert next(line for line in iter(answer.readline, b"") if b"completed" in line)
            board.send_signal(end)  # while a page listens
            answer.read()
        assert board.stderr is not None
        out, err = board.stdout.read(), board.stderr.read()
    assert board.returncode == (0 if end is signal.SIGINT else -end)
    assert err == ""
    assert out == ("Ctrl-C ends it\n" + ("Closed\n" if end is signal.SIGINT else ""))
    assert everything_below(tmp_path) == before
