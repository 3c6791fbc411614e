"""``tvlars-probe doctor``: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.conftest import run_cli
from tvlars_probe.cli import main

if TYPE_CHECKING:
    from pathlib import Path

OLDER = "tests/older/runs/finished"


def asked(*args: object) -> Any:
    return CliRunner().invoke(main, ["doctor", *map(str, args)])


def test_an_optimizer_with_a_fault_ends_with_code_1_and_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own.py").write_text(
        "import torch\n"
        "class Mine(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        super().step(closure)\n"
        "        for p in self.param_groups[0]['params']:\n"
        "            p.grad = None\n"
    )
    monkeypatch.chdir(tmp_path)
    done = asked("my_own:Mine", "--steps", 20)
    assert done.exit_code == 1
    assert "wrong: gradient_kept: step 0 took the gradient away (None)" in done.output
    assert "remedy: write into tensors of the optimizer's own" in done.output


def test_a_sound_one_ends_with_code_0_and_takes_settings() -> None:
    done = asked("torch.optim:SGD", "--steps", 20, "--set", "lr=0.5", "momentum=0.9", "nesterov=true", "--json")
    assert done.exit_code == 0
    found = json.loads(done.output)
    assert found["wrong"] == []
    assert "nesterov momentum 0.9" in found["description"][-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch:X"], "there is no module nosuch"),
        (["torch.optim:Foo"], "torch.optim has no Foo (its classes: ASGD"),
        (["torch.nn:Linear"], "Linear is no optimizer"),
        (["torch:nn"], "torch:nn is no optimizer, but a value of type module"),
        (["tests.diagnosis.broken:PLANTED"], "broken:PLANTED is no optimizer, but a value of type dict"),
        (["tests/planted.py:Sound"], "planted.py is a file: give its module, planted:Sound"),
        (["torch.optim:Optimizer"], "Optimizer has no step of its own"),
        (["torch.optim:SGD", "--phase", "train"], "--phase has no meaning for an optimizer"),
        ([OLDER, "--set", "lr=1"], "--set has no meaning for a run"),
        ([OLDER, "--steps", "20"], "--steps has no meaning for a run"),
        (["torch.optim:SGD", "--set", "foo=1"], "SGD takes no foo (it takes lr, momentum"),
        (["torch.optim:SGD", "--set", "lr"], "--set lr isn't NAME=VALUE"),
        (["torch.optim:SGD", "--set", "lr=-1"], "it can't be made: ValueError: Invalid learning rate"),
        (["somewhere"], "somewhere is neither a run nor an optimizer"),
        (["./nowhere"], "nowhere"),
        ([OLDER, "--phase", "nosuch"], "unknown phase"),
    ],
    ids=" ".join,
)
def test_users_errors_are_one_line_with_a_remedy(args: list[str], message: str) -> None:
    done = asked(*args)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


def test_a_module_that_exits_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    done = asked("a_script:Mine")
    assert done.exit_code == 2
    assert "a_script can't be imported: SystemExit: 0" in done.output


def test_what_cant_be_tried_is_said_once() -> None:
    done = asked("torch.optim:LBFGS")
    assert done.exit_code == 0
    assert done.output.splitlines()[1:] == [
        "Nothing could be tried: its step needs a closure: TypeError: LBFGS.step() missing 1 required positional "
        "argument: 'closure'"
    ]
    done = asked("tests.diagnosis.broken:StepRaises")
    assert done.exit_code == 1
    assert "wrong: steps_made: its step raises KeyError: 'exp_avg'" in done.output
    assert done.output.splitlines()[-1] == "Nothing else could be tried: its step raises KeyError: 'exp_avg'"


def test_a_recorded_run_is_asked() -> None:
    done = asked(OLDER)
    assert done.exit_code == 0, done.output
    assert "right: peak_reached" in done.output
    assert "finished: 0 things wrong" in done.output


def test_a_run_whose_trace_is_lost_is_refused_with_what_tells_more(tmp_path: Path) -> None:
    run = tmp_path / "lost"
    shutil.copytree(OLDER, run)
    shutil.rmtree(run / "trace")
    done = asked(run)
    assert done.exit_code == 2
    assert f"and none is on record: `tvlars-probe check {run}` tells more" in done.output


@pytest.mark.slow
def test_a_run_whose_phi_dies_is_found(tmp_path: Path) -> None:
    run_cli(
        "train", "--devices", "cpu", "--opt", "tvlars", "--lmbda", 2, "--lr", 1, "--bs", 256, "--epochs", 3,
        "--run-dir", "r", cwd=tmp_path,
    )  # fmt: skip
    done = run_cli("doctor", "./r", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "wrong: phi_alive: from step" in done.stdout
