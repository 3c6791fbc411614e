"""A run that goes wrong: what `train` prints, what ends it, and what `show` and the report begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe import open_run

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG = ("train", "--opt", "lars", "--lr", 500, "--limit", 192, "--bs", 8, "--epochs", 5, "--dv", "cpu")
"""120 updates at a rate far too high."""


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is flushed: a test is too short for the recorder's own pace."""
    monkeypatch.setattr("tvlars_probe.traces.writer.TraceWriter.due", True)


@pytest.mark.usefixtures("flushed")
def test_a_finding_is_a_line_and_ends_a_run_that_asks_for_it(cli: Callable[..., Any]) -> None:
    done = cli(*WRONG, "--run-dir", "r", "--findings", "all", "--stop-on", "loss_spike", "non_finite")
    assert done.code == 0, done.err
    run = open_run("r")
    assert run.status == "interrupted"
    first = run.findings().query("rule == 'loss_spike'").iloc[0]
    assert f"finding in step {first.step}: loss_spike: {first.text}" in done.out
    assert len(run.steps()) == first.step + 2
    lines = done.out.splitlines()
    assert any(line.startswith(f"Found loss_spike (step {first.step}): the loss") for line in lines)
    assert run.manifest.notes[-1].startswith(f"stopped on the finding of step {first.step}: loss_spike")
    again = cli("train", "--resume", "r", "--stop-on", "none")
    assert again.code == 0, again.err
    assert open_run("r").status in ("completed", "diverged")


@pytest.mark.usefixtures("flushed")
def test_a_rule_is_told_five_times_and_recorded_each_time(cli: Callable[..., Any]) -> None:
    done = cli(*WRONG, "--run-dir", "r", "--findings", "ratio_vanished")
    told = [line for line in done.out.splitlines() if line.startswith("finding in ")]
    found = open_run("r").findings()
    assert len(found) > 5
    assert len(told) == 5
    assert told[-1].endswith("(further findings of this rule are recorded, not told)")


def test_show_and_the_report_begin_with_findings(cli: Callable[..., Any]) -> None:
    cli(*WRONG, "--run-dir", "runs/r", "--findings", "all")
    shown = cli("show", "runs/r")
    lines = shown.out.splitlines()
    assert lines[2].strip() == "Findings"
    rules = open_run("runs/r").findings()["rule"].unique().tolist()
    assert [word for line in lines[3:] if (word := line.partition(" ")[0]) in rules] == rules  # texts wrap
    rows = json.loads(cli("show", "runs/r", "--json").out)["findings"]
    assert [row["rule"] for row in rows] == rules
    assert sum(row["findings"] for row in rows) == len(open_run("runs/r").findings())
    assert cli("report", "runs/r", "-o", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.index("Findings while training") < page.index("Loss and accuracy")
    assert all(rule in page for rule in rules)


def test_an_unknown_rule_is_refused_with_the_known_ones(cli: Callable[..., Any]) -> None:
    done = cli("train", "--stop-on", "nan", "--run-dir", "r")
    assert done.code == 2
    assert "'non_finite', 'loss_spike'" in done.err
    assert not Path("r").exists()
