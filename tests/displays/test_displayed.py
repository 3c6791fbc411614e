"""What results show of themselves: one line, and HTML in which no text of a file is more than text."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

import tvlars_probe
from tvlars_probe.analyses.verdict import Figure, Reliability, Verdict
from tvlars_probe.displays.displayed import MOST_ROWS, ShownTable
from tvlars_probe.displays.html import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.open = set[str](), "", list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["style"] else data


def shown(value: Any) -> Elements:
    page = Elements(value._repr_html_())
    assert not page.open
    assert page.tags <= {"div", "style", "p", "b", "em", "table", "thead", "tbody", "tr", "th", "td"}
    assert len(repr(value)) < 300
    assert "\n" not in repr(value)
    return page


@pytest.fixture(scope="module")
def answers(measured: list[Path]) -> dict[str, Any]:
    run, runs = tvlars_probe.open_run(measured[0]), tvlars_probe.open_runs(measured)
    return {
        "run": run, "runs": runs, "warmup": run.warmup(), "pairs": runs.warmup(), "minimizer": run.minimizer(),
        "correlation": runs.minimizer(), "replay": run.replay(eta=0.01), "comparison": runs.compare(),
        "batch": run.critical_batch(), "verdict": run.warmup().verdict, "noise": run.critical_batch().noise[0],
    }  # fmt: skip


def test_every_answer_shows_itself_shortly(answers: dict[str, Any]) -> None:
    for name, value in answers.items():
        page = shown(value)
        verdict = value if name == "verdict" else getattr(value, "verdict", None)
        if verdict is not None:
            assert verdict.answer in repr(value)
            assert verdict.question in page.text
            assert verdict.answer in page.text
        assert len(value._repr_html_()) < 30_000


def test_a_list_of_runs_is_a_table_of_what_their_manifests_say(measured: list[Path]) -> None:
    runs = tvlars_probe.open_runs(measured)
    text = shown(runs).text
    assert all(run.name in text and run.status in text for run in runs)
    assert "lars-warm" in text
    assert "TVLARS" in text
    assert repr(runs).startswith("<Runs ")
    assert repr(runs[0]) == f"<Run {runs[0].name}: completed>"
    assert shown(tvlars_probe.open_runs([])).text == "0 runs"
    assert len(repr(runs[0].manifest)) < 100


def test_texts_of_a_run_are_text_alone(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = shutil.copytree(trained("lars"), tmp_path / "a<b>&c")
    manifest = json.loads((run / "run.json").read_text("utf-8"))
    manifest["data"]["name"], manifest["model"]["name"] = HOSTILE, HOSTILE
    manifest["config"]["schedule"]["name"] = HOSTILE
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    opened = tvlars_probe.open_run(run)
    for value in (opened, tvlars_probe.open_runs([run]), opened.warmup(), opened.warmup().facts):
        assert "\x1b" not in repr(value)
        if hasattr(value, "_repr_html_"):
            page = shown(value)
            assert "\x1b" not in value._repr_html_()
            assert "a<b>&c" in page.text
    assert r"<script>alert(1)</script>\x1b[31m\u202e" in shown(opened).text


def test_a_verdict_shows_its_figures_and_how_often_it_was_right() -> None:
    figures = (Figure("loss_rise", 1.5, "1", "highest over first"), Figure("hot_share", None, "share", "layers"))
    verdict = Verdict("Was it?", "yes", "it rose.", figures, Reliability.of(8, 10))
    text = shown(verdict).text
    assert repr(verdict) == "<Verdict yes>"
    assert all(
        part in text for part in ("Was it? yes", "It rose.", "right in 8 of 10", "loss rise1.5highest", "unknown")
    )


def loop(rec: Any, model: Any, optimizer: Any) -> Iterator[str]:
    yield repr(rec)
    with rec:
        for _ in range(3):
            loss = model(torch.ones(2, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss)
        yield repr(rec)
    yield repr(rec)


def test_a_recorder_shows_state_steps_and_place(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rec = tvlars_probe.record(model, optimizer, tmp_path / "run")
    states = ("not entered yet, step 0", "recording, step 3", "completed, step 3")
    assert [*loop(rec, model, optimizer)] == [f"<Recorder {tmp_path / 'run'}: {state}>" for state in states]
    assert "completed, step 3" in shown(rec).text


def test_measurements_show_figures_and_no_vector() -> None:
    torch.manual_seed(0)
    model, data = torch.nn.Linear(400, 3), (torch.randn(8, 400), torch.randint(3, (8,)))
    loss = torch.nn.functional.cross_entropy
    found = tvlars_probe.sharpness(model, loss, [data], top=1, trace=True, density=True)
    assert f"{found.top:.4g}" in repr(found)
    assert "eigenvalue" in shown(found).text
    assert "tensor" not in repr(found) + repr(found.densities)
    assert len(repr(found.densities)) < 400
    assert "tr Σ" in shown(tvlars_probe.gradient_noise(model, loss, [data])).text


def test_a_diagnosis_shows_what_is_wrong() -> None:
    diagnosis = tvlars_probe.doctor(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1), steps=20)
    assert "SGD" in repr(diagnosis)
    text = shown(diagnosis).text
    assert all(check.name in text and check.came in text for check in diagnosis.checks)


def test_a_table_shows_its_first_rows_and_the_columns_that_say_something() -> None:
    frame = pd.DataFrame({"a": range(MOST_ROWS + 3), "b": np.nan, "c": pd.array([1, None] * 11 + [1], dtype="Int64")})
    shortened = ShownTable.of_frame(frame, {"c": "C", "a": "A", "b": "B", "gone": "G"}, "Title")
    assert (len(shortened.rows), shortened.more, [*shortened.headings]) == (MOST_ROWS, 3, ["c", "a"])
    assert "… and 3 more rows" in shortened.html
    assert ShownTable.of_frame(frame[:0], {"a": "A"}).html == ""


def test_cells_say_what_they_hold() -> None:
    row = {"share_share": 0.25, "whole": 1234.0, "part": 0.12345, "yes": True, "none": None, "nan": math.nan,
           "inf": math.inf, "huge": 1e30, "text": "<b>", "parameter": '"x"'}  # fmt: skip
    page = table([row], {name: name.upper() for name in row})
    for cell in ("<td class=n>25 %<", "<td class=n>1,234<", "<td class=n>0.1235<", "<td>yes<", "<td class=n>inf<",
                 "<td class=n>1e+30<",
                 "<td>&lt;b&gt;<", 'data-layer="&quot;x&quot;"', "<th class=n>PART<", "<th>TEXT<"):  # fmt: skip
        assert cell in page
    assert page.count("<td></td>") == 2
