"""What runs answer in Python is what the commands answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import altair as alt
import pytest

import tvlars_probe
from tvlars_probe.analyses.verdict import plain
from tvlars_probe.charts.kinds import KINDS
from tvlars_probe.errors import NothingToShowError, TraceError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def as_told(result: Any) -> Any:
    return json.loads(json.dumps(plain(result)))


@pytest.fixture
def answer(cli: Callable[..., Any]) -> Callable[..., Any]:
    """What a command prints as JSON."""

    def ask(*args: object) -> Any:
        outcome = cli(*args, "--json")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return ask


def test_one_run_answers_as_the_commands_do(measured: list[Path], answer: Callable[..., Any]) -> None:
    run = tvlars_probe.open_run(measured[0])
    assert as_told(run.warmup(hot=3.0)) == answer("warmup", measured[0], "--hot", 3)
    assert as_told(run.minimizer(escaped=0.4)) == answer("minimizer", measured[0], "--escaped", 0.4)
    assert as_told(run.critical_batch(window=3)) == answer("batch-size", measured[0], "--window", 3)
    replayed = answer("replay", measured[0], "--opt", "tvlars", "--lmbda", 0.1)
    assert as_told(run.replay(optimizer="tvlars", lmbda=0.1).table) == replayed["table"]


def test_several_runs_answer_as_the_commands_do(measured: list[Path], answer: Callable[..., Any]) -> None:
    runs = tvlars_probe.open_runs(measured)
    assert as_told(runs.warmup(pair_by="lr")) == answer("warmup", *measured, "--pair-by", "lr")["pairs"]
    assert as_told(runs.minimizer(seed=3)) == answer("minimizer", *measured, "--seed", 3)["correlation"]
    compared = answer("compare", *measured, "--rows", "optimizer", "--columns", "schedule")
    for result in (runs.compare(rows=["optimizer"], columns=["schedule"]),
                   tvlars_probe.compare(measured, rows=["optimizer"], columns=["schedule"])):  # fmt: skip
        assert as_told(result) == compared
    assert as_told(tvlars_probe.compare(runs)) == answer("compare", *measured)


def test_the_file_of_a_chart_and_the_report_are_the_commands(
    measured: list[Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    run, runs = tvlars_probe.open_run(measured[0]), tvlars_probe.open_runs(measured[:2])
    assert cli("chart", "trust-ratio", measured[0], "-o", "chart.json").code == 0
    drawn, written = run.chart("trust-ratio").to_dict(), json.loads((tmp_path / "chart.json").read_text("utf-8"))
    parts = ("data", "datasets", "mark", "encoding", "title", "width", "height", "background", "padding")
    assert {part: drawn[part] for part in parts} == {part: written[part] for part in parts}
    assert cli("report", *measured[:2], "-o", "by-command.html").code == 0
    assert runs.report(tmp_path / "by-call.html") == tmp_path / "by-call.html"
    assert (tmp_path / "by-call.html").read_bytes() == (tmp_path / "by-command.html").read_bytes()


def test_what_can_be_drawn_is_drawn(measured: list[Path]) -> None:
    run, runs = tvlars_probe.open_run(measured[0]), tvlars_probe.open_runs(measured)
    assert {"trust-ratio", "loss", "noise", "landscape"} <= {*run.chart_kinds()} < {*KINDS}
    assert not {"trust-ratio", "noise"} & {*runs.chart_kinds()}
    assert isinstance(run.chart("rates"), alt.FacetChart)
    assert isinstance(runs.chart("loss"), alt.LayerChart)


def test_runs_that_a_chart_leaves_out_are_named(measured: list[Path], trained: Callable[..., Path]) -> None:
    runs = tvlars_probe.open_runs([measured[0], trained("sgd")])
    with pytest.warns(UserWarning, match=r"is left out: no sharpness is on record"):
        runs.chart("sharpness")


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda run, runs: run.chart("pie"), UserError, "unknown kind of chart 'pie'"),
        (lambda run, runs: runs.chart("trust-ratio"), UserError, "shows one run, 2 were given"),
        (lambda run, runs: run.chart("density"), TraceError, "can't be drawn as density"),
        (lambda run, runs: runs.chart("warmup"), NothingToShowError, "would be empty"),
        (lambda run, runs: runs.replay(), UserError, "replay takes one run, 2 were given"),
        (lambda run, runs: run.replay(optimizer="adam"), UserError, "unknown optimizer to replay 'adam'"),
        (lambda run, runs: run.warmup(hot=-1.0), UserError, "out of range"),
        (lambda run, runs: run.warmup(hott=1.0), UserError, r"unknown threshold 'hott' \(known: .*hot"),
        (lambda run, runs: runs.warmup(hot="x"), UserError, "the threshold hot is a number, got 'x'"),
        (lambda run, runs: tvlars_probe.open_runs([]).chart("loss"), UserError, "there is no run to ask"),
        (lambda run, runs: tvlars_probe.open_runs([]).compare(), UserError, "there is no run to ask"),
        (lambda run, runs: tvlars_probe.open_runs([]).report("x.html"), UserError, "there is no run to ask"),
        (lambda run, runs: run.report("~nobody-of-this-name/x.html"), UserError, "there is no folder"),
        (lambda run, runs: run.warmup(phase="linear"), UserError, "unknown phase"),
        (lambda run, runs: runs.warmup(pair_by="rate"), UserError, "unknown rate to pair by 'rate'"),
        (lambda run, runs: run.critical_batch(), TraceError, "can't tell how large the batch may be"),
        (lambda run, runs: run.report("page.pdf"), UserError, "name page.pdf with the suffix .html"),
        (lambda run, runs: run.report(run.path / "page.html"), UserError, "lies in the run directory"),
        (lambda run, runs: runs.compare(rows=["colour"]), UserError, "colour"),
    ],
)
def test_what_cant_be_asked_is_an_error_that_says_so(
    ask: Callable[..., Any], error: type[Exception], text: str, trained: Callable[..., Path]
) -> None:
    run, runs = tvlars_probe.open_run(trained("sgd")), tvlars_probe.open_runs([trained("sgd"), trained("lars")])
    with pytest.raises(error, match=text):
        ask(run, runs)


def test_opening_and_showing_a_run_imports_neither_frames_nor_numbers(trained: Callable[..., Path]) -> None:
    code = (
        "import sys, tvlars_probe\nrun = tvlars_probe.open_run(sys.argv[1])\nrun._repr_html_()\n"
        "tvlars_probe.open_runs([sys.argv[1]])._repr_html_()\n"
        "names = ('numpy', 'pandas', 'pyarrow', 'altair', 'torch', 'rich', 'click')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, trained("lars")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
