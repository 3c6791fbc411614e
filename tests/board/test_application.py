"""The board over HTTP: pages, parts, events, the report; nothing is written, and no run ends in an error."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.board.runs import HOSTILE, TrainedRun, damage, everything_below
from tvlars_probe.board import application, contents, following, static
from tvlars_probe.errors import RunFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.board.conftest import Served


@pytest.fixture(scope="module")
def board(recorded: list[Path], tmp_path_factory: pytest.TempPathFactory, serve: Callable[[Path], Served]) -> Served:
    folder = tmp_path_factory.mktemp("board") / "runs"
    for run in recorded:
        shutil.copytree(run, folder / run.name)
    damage(folder / "damaged")
    TrainedRun(folder / HOSTILE.replace("/", "|"), names=(HOSTILE, "b"), notes=[HOSTILE]).train(12).end()
    return serve(folder)


def test_the_list_has_every_run_and_is_not_sent_twice(board: Served) -> None:
    page = board.get("")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    content = board.get("rows").json
    assert content["html"].count("<tr") == 5
    again = board.get(f"rows?known={content['known']}")
    assert (again.status, again.body) == (204, b"")
    assert board.get("rows?known=other").json == content


def test_a_new_run_appears_in_the_list(tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    board = serve(tmp_path)
    assert board.get("rows").json["html"] == ""
    run = TrainedRun(tmp_path / "new").train(3)
    while "new" not in (html := board.get("rows").json["html"]):
        pass
    assert "running" in html
    run.end(None)
    while "killed" not in board.get("rows").json["html"]:
        pass


def test_the_pages_files_are_there(board: Served) -> None:
    for name, kind in (("page.css", "text/css"), ("board.js", "text/javascript"), ("drawing.js", "text/javascript")):
        answer = board.get(name)
        assert answer.status == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert b"vegaEmbed" in board.get("vega.js").body


def test_files_and_the_list_wait_for_no_verdicts(
    tmp_path: Path, serve: Callable[[Path], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow(*_: Any) -> bytes:
        begun.release()
        assert go.wait(60)
        return b"{}"

    monkeypatch.setattr(contents, "sections", slow)
    for name in ("a", "b", "c"):
        TrainedRun(tmp_path / name).train(3).end()
    board = serve(tmp_path)
    with ThreadPoolExecutor() as pages:
        asked = [pages.submit(board.get, f"sections?run={key}") for key in board.keys().values()]
        try:
            assert begun.acquire(timeout=60)
            assert begun.acquire(timeout=60)  # no more are made at one time
            for path in ("", "rows", *static.FILES):
                assert board.get(path).status == 200
            assert not any(one.done() for one in asked)
        finally:
            go.set()


def test_sections_are_those_of_the_report(board: Served, recorded: list[Path]) -> None:
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.report.content import gather
    from tvlars_probe.runs import open_run

    content = board.get(f"sections?run={board.keys()[recorded[0].name]}").json
    report = gather([Source(open_run(recorded[0]))])
    for section in report.sections:
        assert (f'id="{section.anchor}"' in content["html"]) == (section.anchor != "curves")
    assert len(content["specs"]) == sum(len(section.specs) for section in report.sections[1:])
    assert "Was warm-up needed?" in content["html"]
    assert "0.weight" in content["picker"]
    assert "Made in" in content["note"]


def test_runs_are_compared(board: Served, recorded: list[Path]) -> None:
    keys = board.keys()
    query = "&".join(f"run={keys[run.name]}" for run in recorded)
    page = board.get(f"compare?{query}").text
    assert "3 runs compared" in page
    assert all(run.name in page for run in recorded)
    content = board.get(f"sections?{query}").json
    assert "Which setting is best?" in content["html"]
    assert 'id="pairs"' in content["html"]
    assert 'id="warmup-1"' not in content["html"]  # of single runs their own pages tell


def test_too_many_runs_are_not_compared(board: Served) -> None:
    answer = board.get("compare?" + "&".join(f"run={i}" for i in range(application.MOST_COMPARED + 1)))
    assert (answer.status, answer.text) == (404, "33 runs can't be compared: tick 32 at most.\n")


def test_the_report_is_the_very_page_of_the_command(
    board: Served, recorded: list[Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    name = recorded[0].name
    before = everything_below(board.folder)
    answer = board.get(f"report?run={board.keys()[name]}")
    assert everything_below(board.folder) == before
    assert cli("report", board.folder / name, "-o", "r.html").code == 0
    assert answer.text == (tmp_path / "r.html").read_text(encoding="utf-8")
    assert answer.headers["content-disposition"] == f'attachment; filename="report-{name}.html"'
    assert answer.headers["content-security-policy"].startswith("sandbox;")


@pytest.mark.parametrize(
    ("names", "file"),
    [(["a/b c"], "a-b-c"), ([HOSTILE], "script-alert-1-script-img-src-x-onerror-alert-2-gnp-2J"), (["é"], "run"),
     (["../.."], "run"), (["a", "b"], "2-runs"), (['x"\r\nSet-Cookie: a'], "x-Set-Cookie-a")],
)  # fmt: skip
def test_a_reports_file_has_a_plain_name(names: list[str], file: str) -> None:
    assert contents.file_name(names) == f"report-{file}.html"


def test_a_folder_named_like_a_pattern_stands_for_itself(tmp_path: Path) -> None:
    for name in ("*", "a", "[a]"):
        TrainedRun(tmp_path / name).train(3).end()
    assert [source.trace.path.name for source in contents.opened(tmp_path, [tmp_path / "*"])] == ["*"]
    assert [source.trace.path.name for source in contents.opened(tmp_path, [tmp_path / "[a]"])] == ["[a]"]


def test_a_damaged_run_is_told_everywhere_and_ends_in_no_error(board: Served) -> None:
    key = board.keys()["damaged"]
    assert board.get(f"run?run={key}").status == 200
    assert "can&#x27;t be read" in next(board.events(key))["state"]
    assert "can&#x27;t be read" in board.get(f"sections?run={key}").json["html"]
    report = board.get(f"report?run={key}")
    assert report.status == 200
    assert "content-disposition" not in report.headers
    assert "can&#x27;t be read" in report.text


@pytest.mark.parametrize("table", ["steps", "layers"])
def test_a_damaged_trace_ends_in_no_error(tmp_path: Path, serve: Callable[[Path], Served], table: str) -> None:
    run = TrainedRun(tmp_path / "a").train(12).end()
    for part in (run / "trace" / table).iterdir():
        part.write_bytes(part.read_bytes()[:200])
    board = serve(tmp_path)
    key = board.keys()["a"]
    assert board.get("rows").status == 200
    assert "completed" in next(board.events(key))["state"]
    assert board.get(f"charts?run={key}").status == 200
    assert 'class="trouble"' in board.get(f"sections?run={key}").json["html"]


def test_a_run_with_hostile_names_shows_them_inert(board: Served) -> None:
    key = board.keys()[HOSTILE.replace("/", "|").rpartition("/")[2]]
    news = next(board.events(key))
    content = [board.get(f"{name}?run={key}").json["html"] for name in ("charts", "sections")]
    for html in (*content, *(str(value) for value in news.values()), board.get(f"run?run={key}").text):
        assert "<script>alert" not in html
        assert "<img" not in html
    assert "alert(1)" in content[1]


def test_events_tell_of_a_run_that_trains_and_is_killed(tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    run = TrainedRun(tmp_path / "a").train(10)
    board = serve(tmp_path)
    key = board.keys()["a"]
    events = board.events(key)
    assert "10 of 100" in next(events)["state"]
    loss = board.get(f"charts?run={key}").json
    assert [name.startswith("live-") for name in loss["specs"]] == [True]
    run.train(10, finding=HOSTILE)
    news = next(news for news in events if "findings" in news)
    assert "20 of 100" in news["state"]
    assert "<script>" not in news["findings"]
    run.end(None)
    assert "killed" in next(news for news in events if "killed" in news.get("state", ""))["state"]


def test_charts_are_those_of_the_report(board: Served, recorded: list[Path]) -> None:
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.report.content import gather
    from tvlars_probe.runs import open_run

    content = board.get(f"charts?run={board.keys()[recorded[1].name]}").json
    report = gather([Source(open_run(recorded[1]))])
    (curves,) = (section for section in report.sections if section.anchor == "curves")
    titles = [spec["title"] for spec in curves.specs]
    plain = [{key: value for key, value in spec.items() if key != "title"} for spec in curves.specs]
    assert [*content["specs"].values()] == json.loads(json.dumps(plain))
    assert all(title["text"] in content["html"] for title in titles)


def test_beyond_some_runs_no_more_are_followed(
    board: Served, recorded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MOST_FOLLOWED", 0)
    answer = board.get(f"events?run={board.keys()[recorded[2].name]}")
    assert answer.status == 503
    assert "close a page" in answer.text


def test_whoever_asks_for_a_page_is_answered_with_one(board: Served) -> None:
    answer = board.ask(f"{board.address.partition(str(board.port))[2]}run?run=0", Accept="text/html")
    assert answer.status == 404
    assert "There is no such run" in answer.text
    assert answer.text.startswith("<!doctype html>")


def test_what_nobody_expected_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("<b>")

    monkeypatch.setattr(contents, "opened", fail)
    told = json.loads(contents.sections(tmp_path, [tmp_path / "a", tmp_path / "b"]))
    assert told["specs"] == {}
    assert "ZeroDivisionError: &lt;b&gt;" in told["html"]


@pytest.mark.parametrize("error", [ZeroDivisionError, RunFailedError, MemoryError])
def test_a_report_that_cannot_be_made_is_a_page_that_says_why(
    board: Served, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise error("<b>")

    monkeypatch.setattr(contents, "opened", fail)
    key = board.keys()["damaged"]
    answer = board.get(f"report?run={key}")
    assert answer.status == 200
    assert "content-disposition" not in answer.headers
    assert '<p class="trouble">' in answer.text
    assert "<b>" not in answer.text
    # With that attribute the browser would save this page as if it were the report.
    assert " download" not in board.get(f"run?run={key}").text


def test_nothing_was_written(board: Served, recorded: list[Path]) -> None:
    before = everything_below(board.folder)
    key = board.keys()[recorded[0].name]
    next(board.events(key))
    for name in ("rows", f"run?run={key}", f"charts?run={key}", f"sections?run={key}", f"report?run={key}"):
        assert board.get(name).status == 200
    assert everything_below(board.folder) == before
