"""Who may ask, and how: everybody else gets an answer that tells nothing."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
from starlette.responses import PlainTextResponse

from tests.board.conftest import TOKEN, Served
from tests.board.runs import TrainedRun, everything_below
from tvlars_probe.board.guard import HEADERS, Guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], Served]) -> Served:
    tmp_path = tmp_path_factory.mktemp("guarded")
    (tmp_path / "secret.txt").write_text("out of the folder")
    TrainedRun(tmp_path / "runs" / "one").train(3).end()
    return serve(tmp_path / "runs")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:{port}"])
def test_this_machine_is_answered(board: Served, host: str) -> None:
    assert board.ask(f"/{TOKEN}/", host=host.format(port=board.port)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", "[::1]:{port}", "0"]
)
def test_a_foreign_host_is_refused_even_with_the_token(board: Served, host: str) -> None:
    answer = board.ask(f"/{TOKEN}/", host=host.format(port=board.port))
    assert answer.status == 403
    assert "one" not in answer.text


def test_two_host_headers_or_none_are_refused(board: Served) -> None:
    for lines in ("", f"Host: 127.0.0.1:{board.port}\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", board.port), timeout=60) as raw:
            raw.sendall(f"GET /{TOKEN}/ HTTP/1.0\r\n{lines}\r\n".encode())
            assert raw.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(("port", "status"), [(80, 200), (8765, 403)])
def test_a_browser_names_every_port_but_80(name: str, port: int, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("there is no body")

    scope = {"type": "http", "method": "GET", "path": f"/{TOKEN}/", "headers": [(b"host", name.encode())]}
    guard = Guard(PlainTextResponse("inside"), token=TOKEN, port=port)
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == status


def test_the_address_without_its_last_slash_leads_to_the_list(board: Served) -> None:
    answer = board.ask(f"/{TOKEN}")
    assert (answer.status, answer.headers["location"]) == (308, f"/{TOKEN}/")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["", "rows", "run", "report", "nothing"])
def test_anything_but_get_and_head_is_405(board: Served, method: str, path: str) -> None:
    before = everything_below(board.folder)
    for token in (TOKEN, "wrong"):
        answer = board.ask(f"/{token}/{path}", method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert everything_below(board.folder) == before


def test_head_has_the_headers_and_no_body(board: Served) -> None:
    for path in ("", "rows", "page.css", f"events?run={board.keys()['one']}"):
        answer = board.ask(f"/{TOKEN}/{path}", method="HEAD")
        assert (answer.status, answer.body) == (200, b"")


def test_without_the_token_one_answer_is_given_whatever_is_there(board: Served) -> None:
    key = board.keys()["one"]
    paths = [
        "/",
        "",
        f"/run?run={key}",
        "/rows",
        "/page.css",
        "/nothing",
        f"/{TOKEN[:-1]}/",
        f"/{TOKEN}x/rows",
        "//rows",
    ]
    paths += [f"/{TOKEN.upper()}/", "/%00/", "/%c3%a9/", "/%ff/", f"/./{TOKEN}/", f"/x/../{TOKEN}/rows"]
    answers = [board.ask(path or "/") for path in paths]
    assert {(answer.status, answer.body) for answer in answers} == {(404, answers[0].body)}


def test_a_token_in_the_query_or_a_header_is_none(board: Served) -> None:
    assert board.ask(f"/?token={TOKEN}").status == 404
    assert board.ask("/rows", Cookie=f"token={TOKEN}", Authorization=f"Bearer {TOKEN}").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "..%5csecret.txt", "....//secret.txt", "/etc/passwd",
        "%2fetc%2fpasswd", "one/run.json", "run/../../secret.txt", "board.js/../../__init__.py", "guard.py",
        "static/..%2f..%2fguard.py", "page.css%00", "run?run=../secret.txt", "run?run=%2e%2e%2fsecret.txt",
        "run?run=/etc/passwd", "run?run=one", "report?run=..%2f", "sections?run=*", "events?run=", "charts",
        "compare?run=", "run?run=%00", "rows/", "page.css/", "run/?run=x", "events/",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder_or_to_a_file(board: Served, path: str) -> None:
    answer = board.get(path)
    assert answer.status == 404
    assert not re.search(r"out of the folder|root:|schema_version|secrets", answer.text)


@pytest.mark.parametrize("path", ["", "rows", "page.css", "vega.js", "nothing", "run?run=0"])
def test_every_answer_has_the_headers_that_keep_strangers_out(board: Served, path: str) -> None:
    headers = board.get(path).headers
    for name in HEADERS.keys() - {"cache-control"}:
        assert headers[name] == HEADERS[name]
    assert not any(name.startswith("access-control-") for name in headers)
    assert "set-cookie" not in headers
    assert board.ask(f"/{TOKEN}/{path}", Origin="https://evil.example").headers.keys() == headers.keys()


def test_the_policy_allows_no_inline_script_no_eval_and_no_other_server() -> None:
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe|http|\*", policy)


def test_no_other_protocol_is_spoken(board: Served) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    assert board.ask(f"/{TOKEN}/", **upgrade).status == 200  # an ordinary page, not another protocol
