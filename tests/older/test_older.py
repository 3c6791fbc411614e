"""Runs of an older version: read, analysed and continued by this one (README.md beside it)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe import open_run
from tvlars_probe.runners.checkpoints.checking import check_run
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
RUNS = ("finished", "killed-bt", "killed-clf", "loop")


@pytest.fixture
def older(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an older run."""

    def copy(name: str) -> Path:
        return shutil.copytree(HERE / "runs" / name, tmp_path / name)

    return copy


@pytest.mark.parametrize("name", RUNS)
def test_every_key_of_an_older_manifest_is_read_and_written_again(name: str) -> None:
    stored = json.loads((HERE / "runs" / name / "run.json").read_text(encoding="utf-8"))
    assert contains(json.loads(Manifest.load(HERE / "runs" / name).to_json()), stored)


@pytest.mark.parametrize(("name", "steps"), [("finished", 9), ("killed-bt", 8), ("killed-clf", 8), ("loop", 24)])
def test_an_older_run_is_whole_and_its_rows_are_there(name: str, steps: int, older: Callable[[str], Path]) -> None:
    run = older(name)
    assert check_run(run).faults == []
    opened = open_run(run)
    assert opened.status == ("completed" if name in ("finished", "loop") else "killed")
    assert opened.steps()["step"].tolist() == list(range(steps))
    parameters = {parameter["name"] for parameter in opened.manifest.parameters[opened.steps()["phase"].iloc[0]]}
    assert {*opened.layers()["parameter"].astype(str)} == parameters


def contains(answer: Any, expected: Any) -> bool:
    """Whether all that is expected is there; more may be. Numbers agree to 1e-6, as another machine's do."""
    if isinstance(expected, dict):
        return isinstance(answer, dict) and all(k in answer and contains(answer[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        alike = isinstance(answer, list) and len(answer) == len(expected)
        return alike and all(contains(a, b) for a, b in zip(answer, expected, strict=True))
    if isinstance(expected, float) and not isinstance(answer, bool) and isinstance(answer, float | int):
        return math.isclose(answer, expected, rel_tol=1e-6, abs_tol=1e-9)
    return bool(answer == expected)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("finished-warmup", ["warmup", "finished"]),
        ("finished-minimizer", ["minimizer", "finished"]),
        ("finished-compare", ["compare", "finished"]),
        ("finished-replay", ["replay", "finished"]),
        ("finished-replay-lars", ["replay", "finished", "--opt", "lars", "--eta", 0.002, "--schedule", "cosine"]),
        ("loop-minimizer", ["minimizer", "loop"]),
        ("loop-compare", ["compare", "loop"]),
        ("loop-replay", ["replay", "loop"]),
        ("loop-warmup", ["warmup", "loop"]),
    ],
)
def test_an_older_run_is_analysed_as_before(
    answer: str, words: list[Any], older: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    older(words[1])
    outcome = cli(*words, "--json")
    assert outcome.code == 0
    expected = json.loads((HERE / "answers" / f"{answer}.json").read_text(encoding="utf-8"))
    assert contains(json.loads(outcome.out), expected)


@pytest.mark.parametrize(("name", "whole"), [("killed-clf", "whole-clf"), ("killed-bt", "whole-bt")])
def test_an_older_run_goes_on_and_becomes_what_it_would_have_been(
    name: str, whole: str, older: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    run = older(name)
    outcome = cli("train", "--resume", run)
    assert outcome.code == 0, outcome.err
    assert check_run(run).faults == []
    opened = open_run(run)
    assert opened.status == "completed"
    for table, keys in (("steps", ["step"]), ("layers", ["step", "parameter"])):
        expected = pd.read_csv(HERE / "answers" / f"{whole}-{table}.csv").set_index(keys).sort_index()
        found = (
            opened.frame(table).astype({key: str for key in keys if key == "parameter"}).set_index(keys).sort_index()
        )
        assert found.index.equals(expected.index)
        for column in expected.select_dtypes("number"):
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-6, err_msg=column)


def test_an_older_checkpoint_is_measured(older: Callable[[str], Path], cli: Callable[..., Any]) -> None:
    """Its recorded rates are those of the effective Hessian, whose eigenvalue it recorded at that step."""
    run = older("finished")
    words = ["--operator", "effective", "--samples", 16, "--devices", "cpu", "--threads", 1, "--json"]
    outcome = cli("sharpness", run, *words)
    assert outcome.code == 0, outcome.err
    (row,) = json.loads(outcome.out)
    assert row["step"] == 9
    assert row["value"] > 0
    assert row["limit"] == pytest.approx(3.8)
