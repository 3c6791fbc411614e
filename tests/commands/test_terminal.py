"""Tables on the terminal: no name and no number is cut, however narrow it is."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.charts.test_names import BERT
from tests.conftest import run_cli
from tvlars_probe.analyses.correlation import SharpnessCorrelation
from tvlars_probe.analyses.verdict import Verdict
from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands import minimizer
from tvlars_probe.commands.analysis import _rendered, table_of
from tvlars_probe.commands.runs import render
from tvlars_probe.commands.terminal import FittedTable, Terminal, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = "bert-large-uncased-whole-word-masking-{}-linear-warmup-batch32k-seed{}-node17-attempt2"


def printed(thing: Any, width: int) -> list[str]:
    stream = io.StringIO()
    Terminal(file=stream, width=width).print(thing)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
def test_names_are_shortened_until_the_table_fits_and_numbers_never(width: int) -> None:
    frame = pd.DataFrame({"parameter": BERT[:24], "value": [1234.5678 + i for i in range(24)], "step": range(24)})
    heading, *lines = printed(table_of(frame, {"parameter": "tensor", "value": "the value", "step": "step"}), width)
    rows = [line.split() for line in lines if ".weight" in line or ".bias" in line]
    assert max(map(len, [heading, *lines])) <= width
    assert [row[1] for row in rows] == [f"{1234.5678 + i:.4g}" for i in range(24)]
    assert len({row[0] for row in rows}) == 24
    if width == 200:
        assert [row[0] for row in rows] == BERT[:24]


def test_columns_that_do_not_fit_are_left_out_by_name() -> None:
    frame = pd.DataFrame(
        {"parameter": BERT[:3], **{f"figure_{i}": [1234.0 * k + i for k in (1, 2, 3)] for i in range(8)}}
    )
    text = " ".join(printed(table_of(frame), 60))
    assert "Too wide for 60 columns: figure_3, figure_4" in text
    assert "(a wider terminal or --json shows all)" in text
    assert "Too wide" not in " ".join(printed(table_of(frame), 200))


def test_what_is_one_value_in_all_rows_goes_first_and_is_told_above() -> None:
    """In a table that fits, nothing goes."""
    names = {f"setting {i}": [f"value-{i}"] * 2 for i in range(4)}
    frame = pd.DataFrame({"run": ["a", "b"], **names, "empty": [None, None], "accuracy": [91.5, 92.5]})
    text = [line.rstrip() for line in printed(table_of(frame, title="A title that is as long as it needs to be"), 50)]
    assert text[0] == "A title that is as long as it needs to be"
    told = "In all rows: setting 0 value-0, setting 1 value-1, setting 2 value-2, setting 3 value-3"
    assert " ".join(text[1:3]) == told
    assert [line.split() for line in text[3:]] == [["run", "accuracy"], ["a", "91.5"], ["b", "92.5"]]
    assert [line.split() for line in printed(table_of(frame), 100)][1] == [
        "a", "value-0", "value-1", "value-2", "value-3", "91.5",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_of_one_row_or_of_rows_that_are_alike_stays_a_table(rows: int) -> None:
    frame = pd.DataFrame({f"figure {i}": [12345.0] * rows for i in range(9)})
    lines = printed(table_of(frame), 40)
    assert [line.split() for line in lines if "1.234e+04" in line] == [["1.234e+04"] * 3] * rows


def test_texts_of_several_words_go_on_in_the_next_line() -> None:
    words = "why there is no interval of so few runs"
    text = printed(FittedTable([TextColumn("run", ["a"]), TextColumn("why", [words])]), 30)
    assert " ".join(" ".join(text).split()) == f"run why a {words}"


def test_an_empty_table_has_its_headings() -> None:
    assert printed(table_of(pd.DataFrame({"a": []}), {"a": "alpha"}), 20)[0].strip() == "alpha"


def test_runs_that_differ_in_the_middle_are_told_apart_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"run": RUN.format(o, s), "status": "completed"} for o in ("lars", "sgd", "adamw") for s in (0, 1)]
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal then
    monkeypatch.setenv("COLUMNS", "70")
    render(rows)
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "attempt2" in line]
    assert len({*shown}) == len(shown) == 6


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (2000, "2,000 runs")])
def test_one_is_one(count: int, text: str) -> None:
    assert counted(count, "run") == text


def test_a_correlation_that_one_run_is_left_of_is_of_one_run() -> None:
    over = object.__new__(SharpnessCorrelation)
    told = {
        "verdict": Verdict("?", "can't tell", "few."), "bn_mode": None, "split": None, "on": "", "left_out": (),
        "runs": pd.DataFrame({"run": ["a"]}), "table": pd.DataFrame(),
    }  # fmt: skip
    for name, value in told.items():
        object.__setattr__(over, name, value)
    stream = io.StringIO()
    minimizer.render_runs(Terminal(file=stream, width=80), over)
    assert stream.getvalue().startswith("1 run ")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_signs_that_the_terminal_lacks_are_spelt_out(
    encoding: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    done = run_cli("show", trained("lars"), cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert "\\u2016w\\u2016" in done.stdout
    assert done.stderr == ""


def test_an_answer_whose_output_is_closed_is_none_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert _rendered(lambda console: console.print("x"), to_terminal=True) == "x\n"
