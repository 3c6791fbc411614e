"""Folders whose names are no UTF-8, and lone surrogates in manifests: what is printed and written is UTF-8."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, loop, net

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def hostile(trained: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(trained("tvlars"), tmp_path / NAME)


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "."], ["show", NAME], ["check", NAME], ["compare", NAME], ["warmup", NAME], ["replay", NAME],
        ["chart", "loss", NAME, "-o", f"{NAME}.svg"], ["chart", "trust-ratio", NAME, "-o", f"{NAME}.png"],
        ["chart", "loss", NAME, "-o", f"{NAME}.html"], ["report", NAME, "-o", f"{NAME}.html"],
        ["warmup", NAME, "--csv", "-o", f"{NAME}.csv"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_run_in_such_a_folder_is_answered_for(hostile: Path, cli: Any, words: list[str]) -> None:
    done = cli(*words)
    assert done.code == 0, done.err
    assert "damaged" not in done.out
    if "-o" in words:
        hostile.with_name(words[-1]).read_bytes().decode("utf-8", "strict" if "png" not in words[-1] else "ignore")


@pytest.mark.parametrize("words", [["compare", NAME, "--json"], ["warmup", NAME, "--json"], ["show", NAME, "--json"]])
def test_json_means_the_name_that_the_folder_has(hostile: Path, cli: Any, words: list[str]) -> None:
    done = cli(*words)
    assert done.code == 0, done.err
    # The name is told with its surrogate spelt out, the path as it is.
    told = json.dumps(json.loads(done.out), ensure_ascii=False)
    assert "caf\\\\udce9" in told or NAME in told


def test_lone_surrogates_in_a_manifest_reach_no_file(hostile: Path, cli: Any, tmp_path: Path) -> None:
    path = hostile / "run.json"
    stored = json.loads(path.read_text())
    stored["data"]["name"] = stored["model"]["name"] = "\ud800"
    stored["notes"] = ["\udfff"]
    for entry in stored["parameters"]["train"]:
        entry["layer"] = "\udce9"
    path.write_text(json.dumps(stored))
    for words in (["report", NAME, "-o", "r.html"], ["chart", "loss", NAME, "-o", "c.svg"], ["show", NAME]):
        assert cli(*words).code == 0
    assert "\\udfff" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_loop_is_recorded_into_such_a_folder(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / NAME) as rec:
        loop(model, optimizer, range(3), rec)
    run = tvlars_probe.open_run(tmp_path / NAME)
    assert run.manifest.run_id.startswith("caf\\udce9.")
    assert [*run.steps()["run"].unique()] == [run.manifest.run_id]


def test_tensors_and_phases_of_such_names_are_recorded_with_them_spelt_out(tmp_path: Path, cli: Any) -> None:
    model = nn.ParameterDict({"w\udce9": nn.Parameter(torch.ones(2))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        rec.begin_phase("p\ud800", model, optimizer)
        model["w\udce9"].sum().backward()
        optimizer.step()
        rec.log(loss=1.0)
        rec.log_epoch(epoch=0)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert [*run.layers()["parameter"]] == ["w\\udce9"]
    assert [*run.parameters()["name"]] == ["w\\udce9"]
    assert [*run.epochs()["phase"]] == ["p\\ud800"]
    assert cli("check", "r").code == 0
