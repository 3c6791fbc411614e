"""A chart that would be empty isn't written: an error says what is missing and what records it."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

import tvlars_probe
from tvlars_probe.analyses.comparison import compare, run_row
from tvlars_probe.analyses.correlation import SharpnessCorrelation
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.landscape import analyse_landscape
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.verdict import Verdict
from tvlars_probe.charts.comparisons import comparison_chart, gap_chart, rate_sensitivity
from tvlars_probe.charts.kinds import KINDS, draw
from tvlars_probe.charts.landscape import landscape_line, landscape_map
from tvlars_probe.errors import NothingToShowError, TraceError
from tvlars_probe.report.content import gather
from tvlars_probe.report.page import render
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Outcome

    Cli = Callable[..., Outcome]

REMEDIES = {
    "loss": "rec.log(loss=loss)", "accuracy": "test_acc1", "comparison": "test_acc1", "learning-rates": "test_acc1",
    "lnr": "tvlars-probe show", "grad-norm": "tvlars-probe show", "rates": "every rate is zero",
    "relative-update": "tvlars-probe show", "update-rms": "tvlars-probe show", "spectral-norm": "--spectral-every",
    "update-spectral-norm": "--spectral-every", "warmup": "--schedule lars-warm", "sharpness": "--sharpness-every",
    "density": "sharpness --density",
    "blocks": "tvlars-probe sharpness", "gap": "--sharpness-every", "landscape": "tvlars-probe landscape",
    "landscape-map": "tvlars-probe landscape", "noise": "train --noise", "noise-layers": "record(noise=True)",
    "batch-size": "tvlars-probe batch-size", "time-to-target": "",
}  # fmt: skip
"""By kind, what the error names. Trust ratios of 1 and a run without explosions are something to show."""


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nothing moves: gradients and rates of zero, no loss, an epoch without a test accuracy."""
    path = tmp_path_factory.mktemp("still") / "run"
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tvlars_probe.record(model, optimizer, path) as rec:
        for _ in range(30):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        rec.log_epoch(epoch=0, train_loss=1.0)
    return path


@pytest.mark.parametrize("name", REMEDIES)
def test_no_file_is_written_and_the_remedy_is_named(name: str, still: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("chart", name, still, "-o", tmp_path / "chart.png")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert REMEDIES[name] in done.err
    assert [*tmp_path.iterdir()] == []


def test_the_list_offers_what_can_be_drawn_and_nothing_else(still: Path, measured: list[Path], cli: Cli) -> None:
    lines = cli("chart", "--list", still).out.splitlines()
    offered = {line.split()[0] for line in lines if not line.endswith("]")}
    assert offered == {*KINDS} - {*REMEDIES} == {"trust-ratio", "explosions"}
    for runs in (measured[:1], measured[1:2], measured[:2], measured[1:]):
        sources = [Source(open_run(run)) for run in runs]
        for line in cli("chart", "--list", *runs).out.splitlines():
            kind = KINDS[line.split()[0]]
            some = [sources] if kind.several else [[source] for source in sources]
            assert line.endswith("]") != any(can(line.split()[0], chosen) for chosen in some), line


def can(name: str, sources: list[Source]) -> bool:
    try:
        draw(name, sources)
    except TraceError:
        return False
    return True


def test_pairs_are_offered_where_there_are_any(measured: list[Path], cli: Cli) -> None:
    warmup, gap = ("warmup", "gap")
    alone, pair = (cli("chart", "--list", *measured[:n]).out.splitlines() for n in (1, 2))
    for name, words in ((warmup, "no two of these runs differ in warm-up"), (gap, "it takes two")):
        (line,) = [line for line in alone if line.startswith(name)]
        assert words in line
        (line,) = [line for line in pair if line.startswith(name)]
        assert not line.endswith("]")


def test_a_page_leaves_an_empty_chart_out_with_a_sentence(still: Path) -> None:
    report = gather([Source(open_run(still))])
    assert len([spec for section in report.sections for spec in section.specs]) == 2
    page = render(report)
    for words in ("No chart: no loss is on record", "No chart: no test accuracy", "every rate is zero.</p>"):
        assert words in page


def test_a_run_without_a_loss_is_named_and_the_others_are_drawn(
    still: Path, trained: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(still, tmp_path / "still")
    done = cli("chart", "loss", trained("lars"), tmp_path / "still", "-o", tmp_path / "loss.json")
    assert done.code == 0
    assert "still is left out: no loss is on record" in done.err


def slice_of(loss: list[float], beta: float | None) -> Any:
    about = {
        "measurement_id": "m",
        "created_at": 0,
        "step": 1,
        "run2": None,
        "split": "train",
        "bn_mode": "x",
        "seed": 0,
    }
    alpha = np.linspace(-1, 1, len(loss))
    rows = pd.DataFrame({"alpha": alpha, "beta": beta, "loss": loss, "acc1": 50.0}).assign(**about)
    return analyse_landscape(rows, RunFacts(name="run"))


def test_a_loss_that_is_nowhere_finite_has_no_landscape() -> None:
    for draw_it, beta in ((landscape_line, None), (landscape_map, 0.0)):
        with pytest.raises(NothingToShowError, match="--checkpoint takes an earlier checkpoint"):
            draw_it(slice_of([math.nan, math.nan, math.inf], beta))


def test_settings_without_the_metric_or_a_rate_have_no_chart() -> None:
    epochs = pd.DataFrame({"epoch": [0], "test_acc1": [math.nan], "val_acc1": [math.nan]})
    result = compare([run_row(RunFacts(name="a", peak_lr=1.0), epochs, metric="test_acc1", target=None)])
    for draw_it in (comparison_chart, rate_sensitivity):
        with pytest.raises(NothingToShowError, match="no run has a test accuracy"):
            draw_it(result)
    with_value = [run_row(RunFacts(name="a"), epochs.assign(test_acc1=50.0), metric="test_acc1", target=None)]
    with pytest.raises(NothingToShowError, match="a peak learning rate above zero"):
        rate_sensitivity(compare(with_value))


@pytest.mark.parametrize("sharpness", [[5.0], [5.0, 0.0], [5.0, math.nan]])
def test_a_gap_takes_two_runs_with_both_figures(sharpness: list[float]) -> None:
    runs = pd.DataFrame({"run": "r", "optimizer": "LARS", "end_hessian": sharpness, "generalisation_gap": 1.0})
    over = object.__new__(SharpnessCorrelation)
    for name, value in {"verdict": Verdict("?", "can't tell", ""), "runs": runs}.items():
        object.__setattr__(over, name, value)
    with pytest.raises(NothingToShowError, match="1 run with a sharpness"):
        gap_chart(over)
