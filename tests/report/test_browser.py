"""The report as a reader has it: in a browser, from a file, without a network, on a phone and on a desk."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from selenium.webdriver.support.ui import WebDriverWait

import tvlars_probe
from tests.report.browser import chromium, open_page, why_not
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.source import Source
from tvlars_probe.charts.curves import loss_bins, loss_curves
from tvlars_probe.charts.export import file_content
from tvlars_probe.report.content import gather
from tvlars_probe.report.page import render
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def page(recorded: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(gather([Source(open_run(run)) for run in recorded])), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1400])
def test_every_chart_draws_within_the_page_and_the_console_is_silent(
    page: Path, browser: Any, width: int, scheme: str
) -> None:
    open_page(browser, page, width=width, scheme=scheme)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(e => ({name: e.id, marks: e.querySelectorAll("
        "'.mark-rect path, .mark-line path, .mark-symbol path, .mark-rule line, .mark-area path').length, "
        "wide: e.querySelector('svg').getBoundingClientRect().width}))"
    )
    assert len(drawn) >= 20
    assert [chart["name"] for chart in drawn if not chart["marks"] and "No layer" not in caption(browser, chart)] == []
    assert max(chart["wide"] for chart in drawn) <= width
    assert browser.execute_script("return report.errors") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.get_log("browser") == []


def caption(browser: Any, chart: dict[str, Any]) -> str:
    script = "return document.getElementById(arguments[0]).closest('figure').textContent"
    return str(browser.execute_script(script, chart["name"]))


@pytest.mark.parametrize("width", [375, 1400])
def test_a_click_on_a_layer_selects_it_everywhere_and_a_second_one_nowhere(
    page: Path, browser: Any, width: int
) -> None:
    open_page(browser, page, width=width)
    heat = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].find(e => e.closest('figure').textContent"
        ".startsWith('Trust ratio')).id"
    )
    first = click_on_a_cell(browser, heat)
    WebDriverWait(browser, 60, 0.05).until(lambda b: signals(b) == {first})
    assert browser.execute_script("return document.getElementById('layer').value") == first
    rows = browser.execute_script("return [...document.querySelectorAll('tr.picked')].map(e => e.dataset.layer)")
    assert rows
    assert {*rows} == {first}
    WebDriverWait(browser, 60, 0.05).until(lambda b: opacities(b, heat, first)[1] < 0.5)
    assert opacities(browser, heat, first)[0] == 1
    assert click_on_a_cell(browser, heat) == first
    WebDriverWait(browser, 60, 0.05).until(lambda b: signals(b) == {""})
    assert browser.execute_script("return document.querySelectorAll('tr.picked').length") == 0


def opacities(browser: Any, chart: str, layer: str) -> tuple[float, float]:
    """Lowest opacity of the layer's cells, highest of all others'."""
    script = (
        "return [...document.querySelectorAll('#' + arguments[0] + ' .mark-rect path')]"
        ".map(c => [c.__data__.datum.parameter, c.__data__.opacity]).filter(c => c[0] !== undefined)"  # no legend
    )
    found = browser.execute_script(script, chart)
    own, others = ([opacity for name, opacity in found if (name == layer) is same] for same in (True, False))
    return min(own), max(others)


def signals(browser: Any) -> set[str]:
    """The layer that each chart with layers holds to be selected."""
    script = (
        "return Object.values(report.views).map(v => v.getState({signals: n => n === 'picked'}).signals.picked)"
        ".filter(s => s !== undefined)"
    )
    found = browser.execute_script(script)
    assert len(found) >= 12
    return {*found}


def click_on_a_cell(browser: Any, chart: str) -> str:
    """Click with the mouse on the first cell of a heat map; returns the layer that the cell is of."""
    script = (
        "const cell = document.querySelector('#' + arguments[0] + ' .mark-rect path');"
        "cell.scrollIntoView({block: 'center'});"
        "const box = cell.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2, cell.__data__.datum.parameter]"
    )
    x, y, layer = browser.execute_script(script, chart)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        event = {"type": kind, "x": x, "y": y, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    return str(layer)


def test_the_page_asks_for_nothing_from_elsewhere(page: Path, browser: Any) -> None:
    open_page(browser, page, width=1400)
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


MOST_PAGES = 10


def test_a_report_of_three_runs_prints_on_ten_pages_with_nothing_cut(page: Path, browser: Any) -> None:
    open_page(browser, page, width=1280)
    settings = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": False}  # A4
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", settings)["data"])
    # Chromium writes each page as an object of its own that isn't compressed.
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", printed)) <= MOST_PAGES
    # What the printed page is made of, at its width of 186 mm: 703 CSS pixels.
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": 703, "height": 1032, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_script("for (const d of document.querySelectorAll('details:not(.rests)')) d.open = true")
    wide = (
        "return [...document.querySelectorAll('table, figure, svg, .card, dl')]"
        ".map(e => e.getBoundingClientRect()).filter(b => b.right > 704).length"
    )
    broken = (
        "return [...document.querySelectorAll('figure, table')]"
        ".filter(e => getComputedStyle(e).breakInside !== 'avoid').length"
    )
    assert (browser.execute_script(wide), browser.execute_script(broken)) == (0, 0)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_chart_by_itself_has_the_width_of_the_window_and_its_readers_colours(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    runs = [
        RunFacts(name=f"{rate}-{seed}", optimizer=optimizer, peak_lr=rate, seed=seed)
        for rate in (1.0, 2.0, 4.0)
        for seed in (0, 1)
        for optimizer in ("LARS", "TVLARS")
    ]
    path = tmp_path / "loss.html"
    losses = loss_bins(pd.DataFrame({"step": range(20), "loss": np.linspace(2, 1, 20)}))
    path.write_bytes(file_content(loss_curves([(run, losses) for run in runs]), path))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_of = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_of]})
    browser.get(path.as_uri())
    browser.execute_async_script("const done = arguments[0]; window.ready.then(() => done());")
    svg = "document.querySelector('#chart svg').getBoundingClientRect().width"
    drawn, room = browser.execute_script(f"return [{svg}, document.getElementById('chart').clientWidth]")
    assert room - 40 < drawn <= room
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"dark": "rgb(20, 23, 27)", "light": "rgb(255, 255, 255)"}[scheme]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert browser.get_log("browser") == []
    resized = size | {"width": 800, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", resized)
    WebDriverWait(browser, 60, 0.05).until(lambda b: 700 < b.execute_script(f"return {svg}") <= 800)


def test_a_chart_is_called_by_its_title(page: Path, browser: Any) -> None:
    open_page(browser, page, width=1400)
    names = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(e => [e.getAttribute('aria-label'),"
        " e.closest('figure').querySelector('b').textContent])"
    )
    assert names
    for name, title in names:
        assert name.startswith(title)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of 600 tensors: heat maps have rows of three, rates a third of them."""
    folder = tmp_path_factory.mktemp("wide")
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(300))
    optimizer = tvlars_probe.LARS(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, folder / "run") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss = torch.stack([layer(torch.ones(4, 2)).square().sum() for layer in model]).sum()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss.detach())
    (folder / "report.html").write_text(render(gather([Source(open_run(folder / "run"))])), encoding="utf-8")
    return folder / "report.html"


def test_a_layer_is_found_in_rows_of_several_and_a_row_selects_its_layers(wide: Path, browser: Any) -> None:
    open_page(browser, wide, width=1400)
    heat = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].find(e => e.closest('figure').textContent"
        ".startsWith('Gradient norm')).id"
    )
    lit = (
        "return [...new Set([...document.querySelectorAll('#' + arguments[0] + ' .mark-rect path')]"
        ".filter(c => c.__data__.datum.parameter && c.__data__.opacity === 1).map(c => c.__data__.datum.parameter))]"
    )
    pick = "const done = arguments[1]; report.pick(arguments[0]).then(() => done());"
    browser.execute_async_script(pick, "100.weight")
    (row,) = browser.execute_script(lit, heat)
    browser.execute_async_script(pick, row)
    assert browser.execute_script(lit, heat) == [row]
    marked = browser.execute_script("return [...document.querySelectorAll('tr.picked')].map(e => e.dataset.layer)")
    assert "100.weight" in marked
    assert len({*marked}) == 3
    browser.execute_async_script(pick, "")
    assert len(browser.execute_script(lit, heat)) == 200
    assert browser.execute_script("return report.errors") == []
