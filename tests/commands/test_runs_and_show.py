from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.commands.runs import age
from tvlars_probe.commands.show import describe_finding
from tvlars_probe.traces.manifest import Manifest

QUICK = ("--limit", 64, "--bs", 32, "--epochs", 2, "--devices", "cpu", "--threads", 1)


def test_runs_are_listed(cli: Any) -> None:
    cli("train", *QUICK, "--run-dir", "runs/a")
    cli("train", *QUICK, "--opt", "tvlars", "--sd", "cosine", "--run-dir", "runs/deep/b")
    rows = json.loads(cli("runs", "--json").out)
    assert [(r["run"], r["status"], r["optimizer"], r["schedule"], r["batch_size"]) for r in rows] == [
        ("a", "completed", "LARS", "none", 32),
        ("b", "completed", "TVLARS", "cosine", 32),
    ]
    assert rows[0]["best_test_acc1"] == tvlars_probe.open_run("runs/a").epochs()["test_acc1"].max()
    text = cli("runs", "runs").out.splitlines()
    assert len(text) == 3
    assert text[0].split()[:2] == ["run", "status"]


def test_runs_are_listed_of_several_folders_each_once(cli: Any) -> None:
    for name in ("runs/a", "runs/b", "other/c"):
        cli("train", *QUICK, "--run-dir", name)
    asked = cli("runs", "runs/b", "runs", Path("runs").absolute(), "other", "--json")
    listed = [row["path"] for row in json.loads(asked.out)]
    assert listed == ["runs/b", "runs/a", "other/c"]


def test_damaged_runs_are_listed_as_such(cli: Any) -> None:
    cli("train", *QUICK, "--run-dir", "runs/a")
    Path("runs/b").mkdir()
    Path("runs/b/run.json").write_text("{")
    rows = json.loads(cli("runs", "--json").out)
    assert [r["status"] for r in rows] == ["completed", "damaged"]
    assert "b" in cli("runs").out


def test_no_runs_is_no_error_but_no_folder_is(cli: Any) -> None:
    Path("empty").mkdir()
    assert cli("runs", "empty").out == "No runs below empty\n"
    done = cli("runs", "nowhere")
    assert (done.code, done.err) == (
        2,
        "Error: there is no folder nowhere: 'tvlars-probe train' makes runs under runs/\n",
    )


def test_show_tells_the_run(cli: Any) -> None:
    cli("train", *QUICK, "--opt", "tvlars", "--sd", "lars-warm", "--lr", "3", "--run-dir", "r")
    facts = json.loads(cli("show", "r", "--json").out)
    run = tvlars_probe.open_run("r")
    assert facts["steps"] == {"done": 4, "total": 4, "per_epoch": 2}
    assert facts["status"] == "completed"
    assert facts["peak_lr"] == pytest.approx(3 * 32 / 256)
    ratios = run.layers(steps=(3, 3)).set_index("parameter")["trust_ratio"].drop("8.bias")
    assert facts["trust_ratios"]["highest"][0]["parameter"] == ratios.idxmax()
    assert facts["trust_ratios"]["lowest"][0]["trust_ratio"] == pytest.approx(ratios.min())
    text = cli("show", "r").out
    for part in ("digits: 64 to train", "TVLARS, 5 tensors", "peak lr 0.375", "Trust ratios in step 3", "4.weight"):
        assert part in text


def test_show_takes_a_strangers_run_with_odd_names(cli: Any) -> None:
    model = nn.ModuleDict({"[/b]": nn.Linear(2, 2)})
    optimizer = tvlars_probe.LARS(model.parameters(), 1.0)
    with tvlars_probe.record(model, optimizer, "[red]mine"):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    done = cli("show", "[red]mine")
    assert done.code == 0
    assert "[/b].weight" in done.out
    assert "[red]mine" in done.out
    assert "[red]mine" in cli("runs", ".").out


def test_show_of_a_run_that_recorded_nothing_yet(cli: Any) -> None:
    os.mkdir("r")  # noqa: PTH102
    Manifest(run_id="r").save(Path("r"))
    done = cli("show", "r")
    assert done.code == 0
    assert "killed" in done.out


def test_ages() -> None:
    assert age("2000-01-01T00:00:00+00:00").endswith(" d")
    assert age("nonsense") == ""


def test_a_diverged_run_is_shown_for_machines(cli: Any) -> None:
    assert cli("train", "--lr", 1e30, "--epochs", 2, "--run-dir", "d").code == 0
    shown = cli("show", "d", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["status"] == "diverged"
    assert json.loads(cli("runs", ".", "--json").out)[0]["run"] == "d"


def test_a_strangers_configuration_and_a_damaged_manifest_are_listed(cli: Any, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "mine", config={"schedule": {"kind": "cosine"}}):
        pass
    with tvlars_probe.record(model, optimizer, tmp_path / "torn"):
        pass
    path = tmp_path / "torn" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": [], "groups": None}))
    listed = {row["run"]: row["status"] for row in json.loads(cli("runs", ".", "--json").out)}
    assert listed == {"mine": "completed", "torn": "damaged"}
    assert cli("show", "mine").code == 0
    refused = cli("show", "torn")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "run.json is damaged" in refused.err


def test_a_damaged_part_is_one_line(cli: Any, tmp_path: Path) -> None:
    assert cli("train", "--epochs", 1, "--run-dir", "a").code == 0
    for part in (tmp_path / "a" / "trace" / "steps").iterdir():
        part.write_bytes(b"junk")
    shown = cli("show", "a")
    assert (shown.code, shown.err.count("\n")) == (2, 1)
    assert "damaged" in shown.err


@pytest.mark.parametrize(
    ("further", "text"),
    [
        ({}, "; first tensor 0.weight (grad_norm)"),
        ({"tensors": ["0.weight", "1.bias"]}, "; first tensors 0.weight and 1.bias (grad_norm)"),
        ({"tensors": ["0.weight", *"abcdefg"]}, "; first tensors 0.weight, a, b, c, d and 3 more (grad_norm)"),
        ({"tensor": None, "quantity": None}, ""),
    ],
    ids=["one", "two", "many", "none"],
)
def test_a_finding_names_all_tensors_of_its_step_or_counts_them(further: dict[str, Any], text: str) -> None:
    finding = {"step": 4, "loss": "nan", "tensor": "0.weight", "quantity": "grad_norm"} | further
    assert describe_finding(finding) == f"loss nan in step 4{text}"


def test_of_many_rows_of_one_step_only_the_ends_become_records(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part from a stranger may hold millions of them."""
    cli("train", *QUICK, "--run-dir", "r")
    [part] = Path("r/trace/layers").glob("part-*3.parquet")
    rows = pq.read_table(part)
    last = rows.filter(pc.field("step") == 3)
    pq.write_table(pa.concat_tables([rows, *[last] * 200]), part)
    made: list[int] = []
    records = pd.DataFrame.to_dict
    monkeypatch.setattr(pd.DataFrame, "to_dict", lambda self, *a, **k: made.append(len(self)) or records(self, *a, **k))
    ratios = json.loads(cli("show", "r", "--json").out)["trust_ratios"]
    assert (len(ratios["highest"]), len(ratios["lowest"])) == (5, 5)
    assert max(made) <= 5
    assert ratios["highest"][0]["trust_ratio"] > ratios["lowest"][0]["trust_ratio"]
