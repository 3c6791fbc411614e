from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(cli: Callable[..., Any], tmp_path: Path) -> Path:
    assert cli("train", "--epochs", 1, "--limit", 200, "--bs", 100, "--run-dir", "a").code == 0
    return tmp_path / "a"


def test_figures_are_shown_and_kept(run: Path, cli: Callable[..., Any]) -> None:
    trace = {p: p.stat().st_mtime_ns for p in (run / "trace").rglob("*.parquet")}
    done = cli("sharpness", "a", "--top", 2, "--trace", "--density", "--epsilon", "--per-layer", "--tol", 0.1,
               "--samples", 60)  # fmt: skip
    assert done.code == 0, done.err
    assert "eigenvalue" in done.out
    assert "epsilon 0.001" in done.out
    opened = tvlars_probe.open_run(run)
    rows = opened.curvature()
    assert set(rows.measure) == {"eigenvalue", "trace", "epsilon_sharpness"}
    assert set(rows.scope) == {"all", "0", "2", "4", "8"}
    spectrum = opened.frame("spectrum")
    assert spectrum.groupby("scope", observed=True).size().to_dict() == dict.fromkeys(("all", "0", "2", "4", "8"), 1001)
    assert (spectrum.bn_mode == "eval").all()
    assert {p: p.stat().st_mtime_ns for p in (run / "trace").rglob("*.parquet")} == trace
    again = cli("sharpness", "a", "--json")
    assert [row["measure"] for row in json.loads(again.out)] == ["eigenvalue"]
    assert len(opened.curvature()) == len(rows) + 1


def test_an_audit_compares_modes_and_engines(run: Path, cli: Callable[..., Any]) -> None:
    rows = json.loads(cli("sharpness", "a", "--audit", "--samples", 50, "--json").out)
    assert {(row["bn_mode"], row["engine"]) for row in rows} == {
        (mode, engine) for mode in ("eval", "train", "frozen-batch") for engine in ("lanczos", "pyhessian")
    }
    for engine in ("lanczos", "pyhessian"):  # without BatchNorm the modes are one
        values = [row["value"] for row in rows if row["engine"] == engine]
        assert max(values) == pytest.approx(min(values), rel=1e-6)
    # Power iteration stops early: it is off by no more than the residual that we measured for it.
    pairs = {row["engine"]: row for row in rows if row["bn_mode"] == "eval"}
    ours, theirs = pairs["lanczos"], pairs["pyhessian"]
    assert abs(theirs["value"] - ours["value"]) <= theirs["error"] + ours["error"]


def test_what_did_not_converge_is_reported_as_such(run: Path, cli: Callable[..., Any]) -> None:
    done = cli("sharpness", "a", "--tol", 1e-12, "--max-matvecs", 3)
    assert done.code == 0
    assert "converged no, cross-check agrees" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--top", 10**6), "the model has 25,754 parameters"),
        (("--top", 0), "nothing to measure"),
        (("--top", -1), "0 or more"),
        (("--samples", 201), "there are 200 (allowed: 1 to 200)"),
        (("--samples", 0), "allowed: 1 to 200"),
        (("--split", "val"), "it has train, test"),
        (("--checkpoint", 77), "a step of 2"),
        (("--checkpoint", "worst"), "last, best, all"),
        (("--engine", "pyhessian", "--density"), "torch.eig"),
        (("--engine", "pyhessian", "--nproc", 2, "--devices", "cpu"), "--engine lanczos"),
        (("--samples", 1, "--nproc", 2, "--devices", "cpu"), "each rank needs one"),
        (("--trace", "--trace-matvecs", 2), "6 or more"),
        (("--batch-sharpness", "--samples", 99), "needs a mini-batch of 100 samples, and the sample has 99"),
        (("--batch-size", 5), "which isn't asked for"),
        (("--engine", "pyhessian", "--critical-sharpness"), "PyHessian has no batch"),
        (("--model", "nonsense"), "package.module:function"),
        (("--devices", 0), "no CUDA device"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Path, cli: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    done = cli("sharpness", "a", *words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not (run / "sharpness").exists()


def test_a_run_without_checkpoints_is_refused(run: Path, cli: Callable[..., Any]) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    done = cli("sharpness", "a")
    assert done.code == 2
    assert "has no checkpoints" in done.err


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(run: Path, cli: Callable[..., Any], content: bytes) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(content)
    done = cli("sharpness", "a")
    assert done.code == 2
    assert "damaged" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("without", ["model", "optimizer", "recorder"])
def test_a_checkpoint_that_lacks_a_part_is_refused(run: Path, cli: Callable[..., Any], without: str) -> None:
    path = next((run / "checkpoints").iterdir())
    state = torch.load(path, weights_only=True)
    torch.save({name: part for name, part in state.items() if name != without}, path)
    done = cli("sharpness", run, "--checkpoint", path.stem.removeprefix("step-"))
    assert done.code == 2
    assert f"it lacks {without}" in done.err


@pytest.mark.parametrize(
    "option",
    [("--trace",), ("--top", 2), ("--bn", "train"), ("--density",), ("--critical-sharpness",)],
    ids=lambda words: words[0],
)
def test_an_audit_takes_no_measures_of_its_own(run: Path, cli: Callable[..., Any], option: tuple[Any, ...]) -> None:
    done = cli("sharpness", run, "--audit", *option)
    assert done.code == 2
    assert f"leave out {option[0]}" in done.err


def test_what_is_not_known_along_an_update_is_said(run: Path, cli: Callable[..., Any]) -> None:
    """A rate of zero makes no update."""
    path = next((run / "checkpoints").iterdir())
    state = torch.load(path, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = 0.0
    torch.save(state, path)
    done = cli("sharpness", run, "--top", 0, "--directional-sharpness", "--critical-sharpness", "--samples", 50)
    assert done.code == 0, done.err
    assert "directional sharpness is unknown: the update changes no weight" in done.err
    assert "critical sharpness is unknown: the update changes no weight" in done.err
    assert tvlars_probe.open_run(run).curvature().empty


def test_no_column_of_the_means_over_draws_is_lost(run: Path, cli: Callable[..., Any]) -> None:
    asked = (
        "--draws",
        2,
        "--samples",
        24,
        "--batch-sharpness",
        "--batch-size",
        8,
        "--critical-sharpness",
        "--tol",
        0.1,
    )
    done = cli("sharpness", run, *asked)
    assert done.code == 0, done.err
    for text in ("eigenvalue", "batch_sharpness,", "batches of 8", "critical_sharpness", "cross-check", "products"):
        assert text in done.out


def test_a_density_is_in_the_json(run: Path, cli: Callable[..., Any]) -> None:
    done = cli("sharpness", run, "--top", 0, "--density", "--density-steps", 5, "--samples", 20, "--json")
    rows = json.loads(done.out)
    assert {row["measure"] for row in rows} == {"density"}
    assert len(rows) == 1001


INTEGERS = """
import torch
from torch import nn

def make(config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    return model, nn.functional.cross_entropy, (torch.arange(8).reshape(4, 2) % 5, torch.arange(4) % 2)

def half_frozen(config):
    made = make(config)
    made[0][2].bias.requires_grad_(False)
    return made

def fail(config):
    raise KeyError("data")
"""


def test_a_strangers_model_may_take_integers(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded in one step: the state measured is the one after it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "integers.py").write_text(INTEGERS)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, "mine") as rec:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        rec.log()
    done = cli("sharpness", "mine", "--model", "integers:make", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["step"] == 1
    assert cli("sharpness", "mine", "--model", "integers:half_frozen").err == (
        "left out, frozen or without effect on the loss: 2.bias\n"
    )
    assert "left out" not in done.err
    assert "failed: KeyError: 'data'" in cli("sharpness", "mine", "--model", "integers:fail").err
    assert (
        "needs the optimizer's rates"
        in cli("sharpness", "mine", "--model", "integers:make", "--operator", "effective").err
    )


@pytest.mark.parametrize(("command", "place"), [("sharpness", "sharpness"), ("landscape", "landscape")])
def test_nothing_is_written_through_a_link(
    run: Path, tmp_path: Path, cli: Callable[..., Any], command: str, place: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / place, ignore_errors=True)
    (tmp_path / "outside").mkdir()
    (copy / place).symlink_to(tmp_path / "outside")
    done = cli(command, copy, "--samples", 20)
    assert (done.code, [*(tmp_path / "outside").iterdir()]) == (2, [])
    assert "is a link" in done.err
