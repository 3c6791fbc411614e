"""Pages and their parts as text: what a run is called, or says, is text and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.board.runs import HOSTILE
from tvlars_probe.board.elements import MOST_LETTERS, attribute, duration, number, page, progress, text
from tvlars_probe.board.list_page import MOST_RUNS, list_page, rows
from tvlars_probe.board.listing import ListedRun
from tvlars_probe.board.run_page import MOST_FINDINGS, compare_page, parts, run_page, said
from tvlars_probe.findings.finding import Finding
from tvlars_probe.live.own_medians import Far
from tvlars_probe.live.state import Furthest, LiveState, TopEigenvalue


class Elements(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_inert(html: str, *, scripts: int = 0) -> None:
    page = Elements(html)
    assert [tag for tag, _ in page.found].count("script") == scripts
    assert "img" not in [tag for tag, _ in page.found]
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "alert(1)" in page.text
    assert "\x1b" not in html
    assert "\u202e" not in page.text


def listed(**told: Any) -> ListedRun:
    return ListedRun(**{"key": "0a", "path": Path("r"), "name": "r", "status": "running"} | told)


def state(**told: Any) -> LiveState:
    return LiveState(**{"name": "r", "path": "runs/r", "status": "running"} | told)


def test_a_row_has_the_run_its_figures_and_what_is_searched() -> None:
    run = listed(
        name="sweep/Lars-1", done=50, total=200, loss=0.25, accuracy=91.25, optimizer="LARS", lr=8.0, batch_size=1024,
        created="2026-01-02T03:04:05+00:00", findings=3,
    )  # fmt: skip
    html = rows([run])
    row = Elements(html)
    for told in ("sweep/Lars-1", "running", "50 of 200", "0.25", "91.25 %", "LARS", "8", "1,024", "3"):
        assert told in row.text
    attributes = row.found[0][1]
    assert attributes["data-words"] == "sweep/lars-1 running lars"
    assert ("a", {"href": "run?run=0a"}) in row.found
    assert ("time", {"data-since": "2026-01-02T03:04:05+00:00"}) in row.found


@pytest.mark.parametrize("given", [HOSTILE, f"{'x' * 10_000}"], ids=["hostile", "long"])
def test_hostile_texts_of_a_run_are_text_in_the_list(given: str) -> None:
    html = rows([listed(name=given, error=given, status="damaged", created=given), listed(optimizer=given)])
    if given == HOSTILE:
        assert_inert(html)
    assert len(html) < 8000


def test_hostile_texts_of_a_run_are_text_on_its_page() -> None:
    hostile = state(
        name=HOSTILE, trouble=HOSTILE, notes=(HOSTILE,), phase=HOSTILE, epoch={f"{HOSTILE}_loss": 1.0},
        findings=(Finding(1, HOSTILE, HOSTILE, 1.0, 2.0, HOSTILE),), finding_count=1,
        furthest={"trust_ratio": Furthest(step=1, tensors=(Far(HOSTILE, 1.0, 2.0, 2.0),))},
        sharpness=(TopEigenvalue(step=1, operator=HOSTILE, value=1.0, error=0.1, limit=2.0, converged=False),),
    )  # fmt: skip
    for name, html in parts(hostile).items():
        assert_inert(html)
        assert len(html) > 40, name
    assert_inert(run_page("0a", HOSTILE), scripts=3)
    assert_inert(compare_page(["0a", "0b"], [HOSTILE, "b"]), scripts=3)
    assert_inert(list_page(Path(HOSTILE)), scripts=1)


def test_a_hostile_status_is_an_attribute_and_text() -> None:
    shown = Elements(rows([listed(status=HOSTILE)]))
    assert {name for _, attributes in shown.found for name in attributes} <= {
        "role", "data-key", "data-status", "data-words", "data-of", "class", "type", "value", "aria-label", "href"
    }  # fmt: skip
    assert_inert(rows([listed(status=HOSTILE)]))
    assert_inert(parts(state(status=HOSTILE))["state"])


def test_a_tensor_is_selected_by_its_whole_name() -> None:
    name = "encoder." * 60 + "weight"
    html = parts(state(furthest={"grad_norm": Furthest(step=1, tensors=(Far(name, 1.0, 2.0, 2.0),))}))["furthest"]
    row = next(attributes for tag, attributes in Elements(html).found if "data-layer" in attributes)
    assert row["data-layer"] == name


def test_the_state_tells_progress_rate_and_what_is_left() -> None:
    told = state(
        steps_done=50, steps_total=200, rate=2.5, seconds_left=3725.0, loss=0.5, grad_norm=1.5, lr=0.1,
        last_time=datetime(2026, 1, 1, tzinfo=UTC), epoch={"test_acc1": 90.0, "train_loss": 0.25, "epoch": 3},
    )  # fmt: skip
    shown = Elements(parts(told)["state"])
    for text_ in ("running", "50 of 200", "2.5", "1 h 2 min", "0.5", "1.5", "90.00 %", "0.25"):
        assert text_ in shown.text
    assert ("progress", {"max": "200", "value": "50", "aria-label": "steps done"}) in shown.found


def test_only_a_run_that_trains_has_time_left() -> None:
    assert "time left" not in parts(state(status="killed", seconds_left=5.0))["state"]
    assert "time left" not in parts(state(seconds_left=float("inf")))["state"]


def test_what_is_not_on_record_is_said() -> None:
    told = {name: Elements(html).text for name, html in parts(state()).items()}
    assert told["findings"] == "None on record."
    assert told["furthest"] == "No layer is on record."
    assert told["sharpness"] == "No sharpness is on record."


def test_the_newest_findings_come_first_and_the_others_are_counted() -> None:
    findings = tuple(Finding(i, "loss_spike", None, 1.0, None, f"text {i}") for i in range(70))
    html = parts(state(findings=findings, finding_count=1070))["findings"]
    assert html.index("text 69") < html.index("text 68")
    assert html.count("<li>") == MOST_FINDINGS
    assert "1,020 earlier findings" in html


def test_sharpness_beyond_its_limit_is_marked() -> None:
    def shown(value: float, limit: float | None) -> str:
        one = TopEigenvalue(step=4, operator="effective", value=value, error=None, limit=limit, converged=True)
        return parts(state(sharpness=(one,)))["sharpness"]

    assert '<em class="warn">150 %</em>' in shown(3.0, 2.0)
    assert "50 %" in shown(1.0, 2.0)
    assert "warn" not in shown(1.0, 2.0)
    assert "%" not in shown(1.0, None)
    assert "NaN" in shown(float("nan"), 2.0)


def test_a_screen_reader_hears_status_and_findings() -> None:
    assert said(state()) == "running; 0 findings"
    assert 'aria-live="polite"' in run_page("0a", "r")
    assert 'role="status"' in list_page(Path("runs"))


def test_the_list_says_how_many_runs_it_leaves_out() -> None:
    assert rows([listed()] * (MOST_RUNS + 5)).count("<tr") == MOST_RUNS


def test_every_control_has_a_label() -> None:
    shown = Elements(list_page(Path("runs")) + rows([listed()]))
    labelled = [attributes for tag, attributes in shown.found if tag == "input" and "aria-label" in attributes]
    assert len(labelled) == 1
    assert [tag for tag, _ in shown.found].count("label") == 2  # search, status


def test_texts_are_cut_escaped_and_apart() -> None:
    assert text("a<b") == "<bdi>a&lt;b</bdi>"
    assert len(attribute("x" * 1000)) == MOST_LETTERS
    assert attribute('"\u202e\x07') == "&quot;\\u202e\\x07"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (0.0, "0"), (1.23456, "1.235"), (float("nan"), "NaN"), (float("inf"), "infinite"),
     (float("-inf"), "−infinite")],
)  # fmt: skip
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1.0, "0 s"), (59.9, "59 s"), (61.0, "1 min 1 s"), (7260.0, "2 h 1 min"), (90_000.0, "1 d 1 h")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_run_without_a_known_end_has_no_bar() -> None:
    assert progress(7, None) == '<span class="steps">7</span>'
    assert 'value="5"' in progress(7, 5)


def test_a_page_asks_this_server_alone() -> None:
    for _, attributes in Elements(page("run", "t", "", "")).found:
        for name in ("src", "href"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "/"))
