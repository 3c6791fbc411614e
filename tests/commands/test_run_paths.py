"""Names that are nearly right: of runs, commands, choices, grids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tvlars_probe
from tvlars_probe.errors import nearest, unknown


@pytest.fixture
def in_runs(cli: Any) -> Path:
    """A recorded run at runs/lars, seen from the folder above."""
    model = torch.nn.Linear(3, 2)
    optimizer = tvlars_probe.LARS(model.parameters(), 1.0)
    with tvlars_probe.record(model, optimizer, "runs/lars") as rec:
        for _ in range(3):
            loss = model(torch.ones(4, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=4)
    return Path("runs/lars")


@pytest.mark.parametrize(
    "words",
    [
        ["show", "lars"], ["check", "lars"], ["watch", "lars", "--once"], ["compare", "lars"], ["warmup", "la*"],
        ["chart", "loss", "lars", "-o", "x.json"], ["chart", "--list", "lars"], ["report", "lars", "-o", "x.html"],
        ["runs", "lars"], ["doctor", "lars", "--json"], ["replay", "lars"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_name_of_a_run_below_runs_is_enough_and_what_was_taken_is_said(
    words: list[str], in_runs: Path, cli: Any
) -> None:
    short = cli(*words)
    given = next(word for word in words if word.startswith("la"))
    taken, _, rest = short.err.partition("\n")
    assert taken == f"Taking runs/{given}: there is no {given} here"
    whole = cli(*[f"runs/{word}" if word == given else word for word in words])
    assert (short.code, short.out, rest) == (whole.code, whole.out, whole.err)


def test_a_run_is_found_one_folder_deeper_where_its_name_is_there_once(in_runs: Path, cli: Any) -> None:
    shutil.copytree(in_runs, "runs/sweep/one")
    done = cli("show", "one", "--json")
    assert (json.loads(done.out)["path"], done.err) == (
        "runs/sweep/one",
        "Taking runs/sweep/one: there is no one here\n",
    )
    shutil.copytree(in_runs, "runs/again/one")
    done = cli("show", "one")
    assert done.code == 2
    assert "there is no run at one, but runs/again/one and runs/sweep/one: name one of them" in done.err
    assert "there is no run at trace" in cli("show", "trace").err  # which lies within a run


def test_what_is_said_leaves_json_alone(in_runs: Path, cli: Any) -> None:
    assert json.loads(cli("show", "lars", "--json").out)["path"] == "runs/lars"


def test_a_run_here_goes_before_one_in_runs(in_runs: Path, cli: Any) -> None:
    shutil.copytree(in_runs, "lars")
    done = cli("show", "lars", "--json")
    assert (json.loads(done.out)["path"], done.err) == ("lars", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "lras"], "there is no run at lras, nor at runs/lras. Did you mean 'lars'?"),
        (["compare", "runs/lras"], "there is no run at runs/lras, nor at runs/runs/lras. Did you mean 'runs/lars'?"),
        (["train", "--resume", "lras"], "Did you mean 'lars'?"),
        (["show", "nothing-like-it"], "there is no run at nothing-like-it"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["data", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["xyz"], "No such command 'xyz'."),
        (["train", "--opt", "lasr"], "'rmsprop'. Did you mean 'lars'?"),
        (["train", "--sd", "LARS_WARM"], "'lars-warm'. Did you mean 'lars-warm'?"),
        (["sharpness", "lars", "--operator", "hesian"], "Did you mean 'hessian'?"),
        (["chart", "trust-ration", "lars", "-o", "x.html"], "Did you mean 'trust-ratio'?"),
        (["compare", "lars", "--metric", "test_ac1"], "Did you mean 'test_acc1'?"),
        (["sweep", "clasification-512"], "Did you mean 'classification-512'?"),
        (["sweep", "mien.toml"], "Did you mean 'mine.toml'?"),
        (["sweep", "mine.toml"], "tvlars-probe train has no option --pek-lr. Did you mean 'peak-lr'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_name_is_answered_with_the_nearest(words: list[str], message: str, in_runs: Path, cli: Any) -> None:
    Path("mine.toml").write_text("[grid]\npek-lr = [1.0]\n")
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].endswith(message)


def test_nothing_is_named_that_is_not_alike() -> None:
    assert nearest("adma", ["sgd", "adam"]) == "Did you mean 'adam'?"
    assert nearest("zzz", ["sgd", "adam"]) == nearest("adam", []) == ""
    assert str(unknown("optimizer", "Adma", ["sgd", "adam"])) == (
        "unknown optimizer 'Adma' (known: sgd, adam). Did you mean 'adam'?"
    )
