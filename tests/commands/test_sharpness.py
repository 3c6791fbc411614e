from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

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
    done = cli("sharpness", "a", "--top", 2, "--trace", "--density", "--epsilon", "--per-layer", "--tol", 0.1)
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
    assert " no " in done.out


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
