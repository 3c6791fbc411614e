"""The board as a reader has it: in Chromium, while a run trains below it, is killed, or is called something hostile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from tests.board.runs import HOSTILE, TrainedRun
from tests.report.browser import chromium, why_not
from tvlars_probe.board import following

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.board.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

LOOP = """
import sys, time, torch, tvlars_probe
from tvlars_probe.traces import writer
writer.FIRST_FLUSH_SECONDS = 0.2
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
optimizer = tvlars_probe.LARS(model.parameters(), lr=0.1)
with tvlars_probe.record(model, optimizer, sys.argv[1], total_steps=1_000_000) as recorder:
    while True:
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss.detach(), samples=8)
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), host="127.0.0.1") as driver:
        driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
        yield driver


@pytest.fixture
def silent(browser: Any) -> Iterator[Any]:
    """The browser, whose console must hold nothing in the end, and which must have asked this machine alone."""
    browser.get("about:blank")
    browser.get_log("browser")
    yield browser
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [address for address in asked if not address.startswith("http://127.0.0.1:")] == []
    assert browser.get_log("browser") == []


def show(browser: Any, address: str, *, width: int = 1200, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)


def until(browser: Any, script: str) -> Any:
    """What a script returns, once it returns something that is true."""
    return WebDriverWait(browser, 90, 0.05).until(lambda b: b.execute_script(f"return {script}"))


DRAWN = "['charts', 'sections'].every(id => document.getElementById(id).dataset.drawn > 0)"


def until_drawn(browser: Any) -> None:
    """Scroll to the verdicts, for which they are made, and wait for them and the other charts."""
    until(browser, "document.getElementById('charts').dataset.drawn > 0")
    browser.execute_script("document.getElementById('sections').scrollIntoView()")
    until(browser, DRAWN)


def text_of(browser: Any, element: str) -> str:
    return str(browser.execute_script(f"return document.getElementById('{element}').textContent"))


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a loop that records a run, in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        words = [sys.executable, "-c", LOOP, str(tmp_path / "runs" / "new")]
        started.append(subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_run_started_below_it_appears_moves_and_shows_as_killed(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served], trainer: Callable[[], subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "runs").mkdir()
    board = serve(tmp_path / "runs")
    show(silent, board.address)
    until(silent, "document.getElementById('count').textContent.startsWith('No runs yet')")
    process = trainer()
    row = "document.querySelector('#rows tr')"
    until(silent, f"{row} && {row}.dataset.status === 'running'")
    done = f"Number({row}.querySelector('.steps').textContent.split(' of ')[0].replaceAll(',', ''))"
    first = until(silent, done)
    until(silent, f"{done} > {first}")
    silent.execute_script(f"{row}.querySelector('a').click()")
    until(silent, "document.body.dataset.page === 'run'")
    until(silent, "document.querySelector('.steps')")
    steps = "Number(document.querySelector('.steps').textContent.split(' of ')[0].replaceAll(',', ''))"
    first = until(silent, steps)
    until(silent, f"{steps} > {first}")
    until_drawn(silent)
    until(silent, "document.getElementById('charts').dataset.drawn > 1")  # the chart of the loss moves, too
    process.send_signal(signal.SIGKILL)
    until(silent, "document.querySelector('#part-state .badge').textContent === 'killed'")
    until(silent, "document.getElementById('said').textContent.startsWith('killed')")
    assert silent.execute_script("return board.charts.errors") == []
    silent.get(board.address)
    until(silent, f"{row} && {row}.dataset.status === 'killed'")


def test_a_finding_appears_on_the_open_page(silent: Any, tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    run = TrainedRun(tmp_path / "a").train(12)
    board = serve(tmp_path)
    show(silent, f"{board.address}run?run={board.keys()['a']}")
    until(silent, "document.getElementById('part-findings').textContent === 'None on record.'")
    run.train(1, finding="the loss jumped")
    until(silent, "document.getElementById('part-findings').textContent.includes('the loss jumped')")
    assert text_of(silent, "said") == "running; 1 finding, the newest in step 12"
    run.end()


def test_hostile_names_are_inert(silent: Any, tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    folder = HOSTILE.replace("/", "|")
    names = (HOSTILE, "b</script><svg onload=alert(3)>")
    run = TrainedRun(tmp_path / folder, names=names, notes=[HOSTILE])
    run.train(12, finding=HOSTILE).end()
    TrainedRun(tmp_path / ("x" * 250)).train(12).end()
    board = serve(tmp_path)
    for width in (360, 1200):
        show(silent, board.address, width=width)
        until(silent, "document.querySelectorAll('#rows tr').length === 2")
        assert silent.execute_script("return document.documentElement.scrollWidth") == width
        for key in board.keys().values():
            show(silent, f"{board.address}run?run={key}", width=width)
            until_drawn(silent)
            assert silent.execute_script("return document.documentElement.scrollWidth") == width
            assert silent.execute_script("return board.charts.errors") == []
            assert silent.execute_script("return document.querySelectorAll('script').length") == 3
            assert silent.execute_script("return document.querySelectorAll('img, [onload], [onerror]').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_a_real_run_is_drawn_at_any_width(
    silent: Any, recorded: list[Path], serve: Callable[[Path], Served], width: int, scheme: str
) -> None:
    board = serve(recorded[0].parent)
    show(silent, f"{board.address}run?run={board.keys()[recorded[0].name]}", width=width, scheme=scheme)
    until_drawn(silent)
    drawn = silent.execute_script(
        "return [...document.querySelectorAll('.chart')].map(e => e.querySelector('svg').getBoundingClientRect().width)"
    )
    assert len(drawn) > 8
    assert max(drawn) <= width
    assert silent.execute_script("return document.documentElement.scrollWidth") == width
    ground = silent.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_layer_is_selected_everywhere(silent: Any, recorded: list[Path], serve: Callable[[Path], Served]) -> None:
    board = serve(recorded[0].parent)
    show(silent, f"{board.address}run?run={board.keys()[recorded[0].name]}")
    until_drawn(silent)
    silent.execute_script("document.querySelector('#part-furthest tr[data-layer]').click()")
    layer = until(silent, "board.charts.layer()")
    assert silent.execute_script("return document.getElementById('layer').value") == layer
    picked = silent.execute_script("return [...document.querySelectorAll('tr.picked')].map(e => e.dataset.layer)")
    assert {*picked} == {layer}


def test_a_selected_layer_stays_marked_when_rows_come(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served]
) -> None:
    run = TrainedRun(tmp_path / "a").train(12)
    board = serve(tmp_path)
    show(silent, f"{board.address}run?run={board.keys()['a']}")
    row = "document.querySelector('#part-furthest tr[data-layer=w]')"
    until(silent, row)
    silent.execute_script(f"{row}.click()")
    run.train(5)
    until(silent, "document.querySelector('#part-furthest caption').textContent.includes('step 16')")
    assert silent.execute_script(f"return {row}.className") == "picked"
    run.end()


def test_charts_are_drawn_again_after_a_part_could_not_be_had(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served]
) -> None:
    run = TrainedRun(tmp_path / "a").train(12).end()
    board = serve(tmp_path)
    show(silent, f"{board.address}run?run={board.keys()['a']}")
    until(silent, "document.getElementById('charts').dataset.drawn > 0")
    script = """
    const done = arguments[0], names = Object.keys(board.charts.specs), spec = board.charts.specs[names[0]];
    document.getElementById(names[0]).remove();
    board.charts.draw(names).then(() => board.charts.draw([])).then(() => done("drawn"), (e) => done(String(e)));
    """
    assert silent.execute_async_script(script) == "drawn"
    assert run.is_dir()


def test_why_a_run_is_not_followed_is_told_and_it_is_once_it_can_be(
    browser: Any, tmp_path: Path, serve: Callable[[Path], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    TrainedRun(tmp_path / "a").train(12).end()
    board = serve(tmp_path)
    monkeypatch.setattr(following, "MOST_FOLLOWED", 0)
    show(browser, f"{board.address}run?run={board.keys()['a']}")
    until(browser, "document.getElementById('part-state').textContent.includes('close a page')")
    assert browser.execute_script("return document.getElementById('lost').hidden")
    monkeypatch.setattr(following, "MOST_FOLLOWED", 1)
    until(browser, "document.getElementById('part-state').textContent.includes('12 of 100')")


def test_tables_stay_open_or_closed_when_they_are_made_anew(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served]
) -> None:
    run = TrainedRun(tmp_path / "a").train(12, finding="one")
    board = serve(tmp_path)
    show(silent, f"{board.address}run?run={board.keys()['a']}")
    until_drawn(silent)
    states = "[...document.querySelectorAll('#sections details')].map(e => e.open)"
    silent.execute_script("document.querySelectorAll('#sections details').forEach((e, i) => { e.open = i % 2 === 0; })")
    before = silent.execute_script(f"return {states}")
    assert len(before) > 2
    run.train(1, finding="two").end()
    until(silent, "document.getElementById('sections').dataset.drawn > 1")
    assert silent.execute_script(f"return {states}") == before


def test_the_list_is_searched_filtered_and_two_runs_are_compared(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served]
) -> None:
    for name, status in (("alpha", "completed"), ("beta", "failed"), ("gamma", "completed")):
        TrainedRun(tmp_path / name).train(12).end(status)
    board = serve(tmp_path)
    show(silent, board.address)
    until(silent, "document.querySelectorAll('#rows tr').length === 3")
    visible = "return [...document.querySelectorAll('#rows tr:not([hidden]) a')].map(e => e.textContent).sort()"
    silent.find_element("id", "search").send_keys("ALPHA lars")
    assert silent.execute_script(visible) == ["alpha"]
    assert text_of(silent, "count") == "1 of 3 runs"
    silent.find_element("id", "search").clear()
    silent.execute_script("const s = document.getElementById('search'); s.dispatchEvent(new Event('input'))")
    silent.find_element("id", "status").send_keys("completed")
    assert silent.execute_script(visible) == ["alpha", "gamma"]
    assert not silent.find_element("id", "compare").is_enabled()
    for tick in silent.find_elements("css selector", "#rows tr:not([hidden]) input"):
        tick.click()
    TrainedRun(tmp_path / "delta").train(12).end()  # the list renews itself, and what was ticked stays so
    until(silent, "document.querySelectorAll('#rows tr').length === 4")
    assert silent.find_element("id", "compare").text == "Compare 2 runs"
    silent.find_element("id", "compare").click()
    until(silent, "document.body.dataset.page === 'compare' && document.getElementById('sections').dataset.drawn > 0")
    assert "Which setting is best?" in text_of(silent, "sections")
    assert silent.execute_script("return board.charts.errors") == []


def test_the_list_works_by_keyboard(silent: Any, tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    from selenium.webdriver.common.keys import Keys

    for name in ("a", "b"):
        TrainedRun(tmp_path / name).train(3).end()
    board = serve(tmp_path)
    show(silent, board.address)
    until(silent, "document.querySelectorAll('#rows tr').length === 2")
    focused: list[str] = []
    for _ in range(7):
        silent.switch_to.active_element.send_keys(Keys.TAB)
        told = "const e = document.activeElement; return e.id || e.type || e.textContent"
        focused.append(silent.execute_script(told))
    assert focused[:2] == ["search", "status"]
    assert focused.count("checkbox") == 2
    assert {"a", "b"} <= {*focused}


@pytest.mark.parametrize("element", ["a", "input"])
def test_the_focus_stays_in_its_row_when_the_list_renews_itself(
    silent: Any, tmp_path: Path, serve: Callable[[Path], Served], element: str
) -> None:
    TrainedRun(tmp_path / "a").train(3).end()
    board = serve(tmp_path)
    show(silent, board.address)
    until(silent, "document.querySelectorAll('#rows tr').length === 1")
    key = board.keys()["a"]
    silent.execute_script(f"document.querySelector('#rows {element}').focus()")
    TrainedRun(tmp_path / "b").train(3).end()
    until(silent, "document.querySelectorAll('#rows tr').length === 2")
    focused = silent.execute_script(
        "const e = document.activeElement; return [e.localName, e.closest('tr')?.dataset.key]"
    )
    assert focused == [element, key]


def test_all_findings_are_printed(silent: Any, tmp_path: Path, serve: Callable[[Path], Served]) -> None:
    run = TrainedRun(tmp_path / "a")
    for _ in range(30):
        run.train(1, finding="the loss jumped " * 10)
    run.end()
    board = serve(tmp_path)
    show(silent, f"{board.address}run?run={board.keys()['a']}")
    until(silent, "document.querySelectorAll('.findings li').length === 30")
    silent.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = silent.execute_script(
        "const e = document.querySelector('.findings'); return e.scrollHeight - e.clientHeight"
    )
    silent.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden <= 0


def test_a_board_that_was_closed_is_told(browser: Any, tmp_path: Path) -> None:
    TrainedRun(tmp_path / "runs" / "a").train(3).end()
    words = [sys.executable, "-m", "tvlars_probe", "board", str(tmp_path / "runs")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if "http://" in line).split(": ")[1].strip()
        show(browser, address)
        until(browser, "document.querySelectorAll('#rows tr').length === 1")
        assert json.loads(browser.execute_script("return JSON.stringify(document.getElementById('lost').hidden)"))
        process.terminate()
        process.wait(60)
    until(browser, "!document.getElementById('lost').hidden")
