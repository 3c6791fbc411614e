"""``sharpness --draws``: several disjoint samples, their rows, and what is told of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats

import tvlars_probe
from tests.ranked import cli_on_ranks
from tvlars_probe.runners.progress import status_line

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 200 digits with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("drawn")
    settings = ("--epochs", 2, "--limit", 200, "--bs", 100, "--checkpoint-every", 1)
    cli_on_ranks(1, "train", *settings, "--run-dir", "a", cwd=folder)
    return folder / "a"


@pytest.fixture
def run(trained_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained_once, tmp_path / "a")


STRANGE = """
import torch
from torch import nn

def alike(config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    return model, nn.functional.cross_entropy, (torch.ones(40, 6), torch.zeros(40, dtype=torch.long))

def unlike(config):
    model, loss, _ = alike(config)
    return model, loss, (torch.randn(40, 6), torch.arange(40) % 3)
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that ``train`` did not make, and functions that give a small model and 40 samples, alike or unlike."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange.py").write_text(STRANGE)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "mine") as rec:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        rec.log()
    return "mine"


def split(answer: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the draws and the means in a command's JSON."""
    rows = json.loads(answer)
    means = [row for row in rows if row["measure"] == "mean_over_draws"]
    return [row for row in rows if row not in means], means


def test_each_draw_has_its_rows_and_the_mean_is_theirs(run: Path, cli: Callable[..., Any]) -> None:
    rows, (mean,) = split(cli("sharpness", "a", "--samples", 50, "--draws", 4, "--json").out)
    assert [row["draw"] for row in rows] == [0, 1, 2, 3]
    assert len({row["sample_id"] for row in rows}) == 4
    assert len({row["measurement_id"] for row in rows}) == 1
    values = [row["value"] for row in rows]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    told = (mean["of"], mean["draws"], mean["value"], mean["standard_error"], mean["low"], mean["high"])
    assert told == ("eigenvalue", 4, *map(pytest.approx, (np.mean(values), stats.sem(values), low, high)))
    (alone,) = json.loads(cli("sharpness", "a", "--samples", 50, "--json").out)
    same = ("value", "error", "sample_id", "seed", "loss", "samples", "matvecs")
    assert {name: alone[name] for name in same} == {name: rows[0][name] for name in same}
    assert alone["draw"] is None


def test_the_mean_over_samples_is_at_least_the_sharpness_of_their_union(strange: str, cli: Callable[..., Any]) -> None:
    """λ₁ is convex, and the loss a mean over samples; the lowest eigenvalue is concave, the trace linear."""
    asked = ("sharpness", strange, "--model", "strange:unlike", "--bottom", 1, "--trace", "--trace-matvecs", 200)
    exact = ("--tol", 1e-8, "--precision", "float64", "--json")
    _, (top, bottom, trace) = split(cli(*asked, "--draws", 4, *exact).out)
    whole = [row["value"] for row in json.loads(cli(*asked, *exact).out)]
    assert top["value"] > whole[0] * 1.01
    assert bottom["value"] < whole[1]
    assert trace["error"] == 0  # so many products give the trace itself
    assert trace["value"] == pytest.approx(whole[2], rel=1e-10)
    assert {row["samples"] for row in (top, bottom, trace)} == {10}


def test_every_measure_is_drawn(strange: str, cli: Callable[..., Any]) -> None:
    measures = ("--trace", "--epsilon", "--density", "--density-steps", 5, "--per-layer", "--operator", "relative")
    done = cli("sharpness", strange, "--model", "strange:unlike", "--draws", 2, *measures)
    assert done.code == 0, done.err
    rows, spectrum = tvlars_probe.open_run(strange).curvature(), tvlars_probe.open_run(strange).frame("spectrum")
    figures = rows.groupby(["measure", "scope", "epsilon", "dimensions"], observed=True, dropna=False)
    assert all(sorted(group["draw"]) == [0, 1] for _, group in figures)
    assert set(rows.measure) == {"eigenvalue", "trace", "epsilon_sharpness"}
    assert set(rows.scope) == {"all", "0", "2"}
    assert spectrum.groupby(["scope", "draw"], observed=True).size().tolist() == [1001] * 6
    assert spectrum[["draw", "sample_id", "seed"]].drop_duplicates().shape == (2, 3)
    for kind in ("density", "blocks"):
        assert cli("chart", kind, strange, "-o", f"{kind}.json").code == 0
        assert "mean of 2 samples of 20" in Path(f"{kind}.json").read_text()


def test_the_table_tells_means_their_errors_and_the_draws_not_converged(run: Path, cli: Callable[..., Any]) -> None:
    done = cli("sharpness", "a", "--draws", 3, "--samples", 20, "--trace", "--tol", 1e-12, "--max-matvecs", 3)
    assert "on 3 disjoint samples of 20 of train" in done.out
    assert "Means over samples of 20, which aren't figures of all the data" in done.out
    for heading in ("mean", "std. error", "95 % from", "deviation of one", "own error"):
        assert heading in done.out
    assert "0 of 3" in done.out
    assert "draws" not in cli("sharpness", "a", "--samples", 20).out


def test_figures_of_a_single_row_stand_in_the_table(run: Path, cli: Callable[..., Any]) -> None:
    lines = cli("sharpness", "a", "--draws", 2, "--samples", 20).out.splitlines()
    [heading] = [line for line in lines if line.startswith("measure")]
    assert "95 % from" in heading
    assert not any("95 % from" in line for line in lines if line != heading)
    # Without a trace no row of one sample has an interval.
    assert "95 % from" not in cli("sharpness", "a", "--samples", 20).out


def test_every_checkpoint_is_measured_on_the_same_draws(run: Path, cli: Callable[..., Any]) -> None:
    asked = ("sharpness", "a", "--checkpoint", "all", "--draws", 2, "--samples", 20)
    rows, means = split(cli(*asked, "--json").out)
    assert [(row["step"], row["draw"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert [row["sample_id"] for row in rows[:2]] == [row["sample_id"] for row in rows[2:]]
    assert cli(*asked[:2], "--samples", 30).code == 0
    answer = json.loads(cli("minimizer", "a", "--json").out)
    for name in ("value", "standard_error", "low", "high"):
        assert [row[name] for row in answer["curves"]] == [mean[name] for mean in means]
    assert [(row["is_curve"], row["samples"], row["draws"]) for row in answer["samples"]] == [
        (True, 20, 2),
        (False, 30, 1),
    ]


def test_an_audit_is_drawn(strange: str, cli: Callable[..., Any]) -> None:
    rows, means = split(cli("sharpness", strange, "--model", "strange:unlike", "--audit", "--draws", 2, "--json").out)
    assert len(rows) == 12
    assert {(row["bn_mode"], row["engine"]) for row in means} == {(row["bn_mode"], row["engine"]) for row in rows}
    assert len(means) == 6


def test_the_progress_names_the_draw(run: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    where = "tvlars_probe.runners.posthoc.curvature.status_line"
    monkeypatch.setattr(where, lambda *, speaks: status_line(speaks=speaks, interval=0.0))
    told = cli("sharpness", "a", "--draws", 2, "--samples", 20).err
    assert re.search(
        r"^checkpoint 1 of 1 \(step 4\), draw 1 of 2: eigenvalues of hessian, whole model: \d+ of at most 1,000 prod",
        told,
        re.MULTILINE,
    )
    assert re.search(
        r"^checkpoint 1 of 1 \(step 4\), draw 2 of 2: eigenvalues of hessian, whole model: \d+ of at most 1,000 prod",
        told,
        re.MULTILINE,
    )
    told = cli("sharpness", "a", "--samples", 20, "--trace", "--per-layer").err
    assert "draw" not in told
    assert re.search(
        r"^checkpoint 1 of 1 \(step 4\): trace of hessian, whole model: 45 of 45 products$", told, re.MULTILINE
    )
    assert re.search(
        r"^checkpoint 1 of 1 \(step 4\): eigenvalues of hessian, layer .*: \d+ of at most", told, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--draws", 1), "--draws 1 shows no difference between samples (allowed: 2 or more; none for one sample)"),
        (("--draws", 0), "allowed: 2 or more"),
        (("--draws", 3, "--samples", 67), "take 201, there are 200 (allowed: --draws up to 2 with that size, or "
         "--samples up to 66"),
        (("--draws", 201), "--draws up to 200"),
        (("--draws", 2, "--samples", 1, "--nproc", 2, "--devices", "cpu"), "each rank needs one"),
    ],
)  # fmt: skip
def test_draws_that_the_data_does_not_hold_are_refused(
    run: Path, cli: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    done = cli("sharpness", "a", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not (run / "sharpness").exists()


def test_without_a_size_the_draws_share_the_data(run: Path, cli: Callable[..., Any]) -> None:
    rows, _ = split(cli("sharpness", "a", "--draws", 3, "--json").out)
    assert [row["samples"] for row in rows] == [66, 66, 66]


def test_the_spread_of_traces_holds_the_error_of_their_estimator(strange: str, cli: Callable[..., Any]) -> None:
    """All samples are one sample here: what differs is the random vectors, whose error is the one told."""
    asked = ("--model", "strange:alike", "--top", 0, "--trace", "--trace-matvecs", 12, "--draws", 20, "--json")
    rows, (mean,) = split(cli("sharpness", strange, *asked).out)
    assert len({row["value"] for row in rows}) == 20
    own = np.sqrt(np.mean([row["error"] ** 2 for row in rows]))
    assert 0.3 < mean["deviation"] / own < 3


def test_a_strangers_data_is_drawn_piece_by_piece(strange: str, cli: Callable[..., Any]) -> None:
    asked = ("sharpness", strange, "--model", "strange:unlike")
    rows, _ = split(cli(*asked, "--draws", 3, "--samples", 4, "--json").out)
    assert [row["samples"] for row in rows] == [4, 4, 4]
    assert len({row["sample_id"] for row in rows}) == 3
    (first,) = json.loads(cli(*asked, "--samples", 4, "--json").out)
    assert (first["value"], first["sample_id"]) == (rows[0]["value"], rows[0]["sample_id"])
    assert "there are 40 (allowed: --draws up to 2" in cli(*asked, "--draws", 3, "--samples", 20).err
    told = cli("minimizer", strange)
    assert "Sharpness: mean of 3 samples of 4" in told.out
    assert "on given data" in told.out


@pytest.mark.slow
def test_two_ranks_draw_as_one(run: Path, cli: Callable[..., Any]) -> None:
    asked = ("sharpness", "a", "--draws", 2, "--samples", 15, "--tol", 1e-7, "--precision", "float64", "--json")
    two = split(cli_on_ranks(2, *asked, "--devices", "cpu", cwd=run.parent))[0]
    one = split(cli(*asked).out)[0]
    assert [row["sample_id"] for row in one] == [row["sample_id"] for row in two]
    assert [row["value"] for row in one] == pytest.approx([row["value"] for row in two], rel=1e-8)
