"""Without the extra ``train``: runs are read and drawn, and whatever needs torch says so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.board.runs import everything_below
from tvlars_probe.cli import COMMANDS
from tvlars_probe.extras import TRAIN, missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFUSING = f"""
import sys
from importlib import metadata
class Refusing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {TRAIN!r}:
            raise ModuleNotFoundError(name, name=name)
    def find_distributions(context=None):
        if context is not None and context.name in {TRAIN!r}:
            raise metadata.PackageNotFoundError(context.name)
        return ()
sys.meta_path.insert(0, Refusing)
import tvlars_probe
"""

PROGRAM = f"""
{REFUSING}
import contextlib, io, json
from tvlars_probe.cli import main

def outcome(args):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(args)
        except SystemExit as error:
            return [error.code, err.getvalue()]
        except BaseException as error:
            return [repr(error), err.getvalue()]

print(json.dumps([outcome(args) for args in json.load(sys.stdin)]))
"""

NEEDING = {
    "train": ["train", "--epochs", "1", "--run-dir", "new"],
    "sweep": ["sweep", "--optimizer", "lars", "--lr", "1", "2", "--epochs", "1", "--out", "grid"],
    "branch": ["branch", "RUN", "--checkpoint", "last", "--batch-sizes", "16,32", "--samples", "96"],
    "sharpness": ["sharpness", "RUN"],
    "landscape": ["landscape", "RUN"],
    "doctor": ["doctor", "torch.optim:SGD"],
    "certify": ["certify"],
    "batch-size": ["batch-size", "RUN", "--checkpoint", "last"],
}
"""By command, a call that needs torch."""

READING = {
    "data": ["data", "list"],
    "runs": ["runs", "FOLDER"],
    "init": ["init", "grid.toml"],
    "query": ["query", "select count(*) from layers", "RUN"],
    "check": ["check", "RUN"],
    "doctor": ["doctor", "RUN"],
    "show": ["show", "RUN"],
    "watch": ["watch", "RUN", "--once"],
    "warmup": ["warmup", "RUN"],
    "minimizer": ["minimizer", "RUN"],
    "batch-size": ["batch-size", "RUN"],
    "compare": ["compare", "RUN"],
    "replay": ["replay", "RUN"],
    "landscape": ["landscape", "RUN", "--stored"],
    "chart": ["chart", "trust-ratio", "RUN", "-o", "chart.svg"],
    "report": ["report", "RUN", "-o", "page.html"],
}
"""By command, a call that only reads."""

ELSEWHERE = {"board", "export"}
"""They need packages of other extras: what they import is what `tests/test_layout.py` imports without torch."""


def outcomes(calls: list[list[str]], run: Path, folder: Path) -> list[tuple[Any, str]]:
    places = {"RUN": str(run), "FOLDER": str(run.parent)}
    given = json.dumps([[places.get(word, word) for word in call] for call in calls])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [(code, err) for code, err in json.loads(done.stdout)]


def test_every_command_is_called_with_torch_or_without() -> None:
    assert {*NEEDING, *READING, *ELSEWHERE} == {*COMMANDS}


def test_commands_that_read_need_no_torch(measured: list[Path], tmp_path: Path) -> None:
    found = dict(zip(READING, outcomes([*READING.values()], measured[0], tmp_path), strict=True))
    assert {name: told for name, told in found.items() if told[0] not in (0, 1)} == {}
    assert {name for name, (code, _) in found.items() if code} <= {"doctor"}  # 1: something is wrong with the run
    assert {path.name for path in tmp_path.iterdir()} == {"chart.svg", "grid.toml", "page.html"}


def test_the_version_is_told_without_torch(tmp_path: Path) -> None:
    program = f"{REFUSING}\nfrom tvlars_probe.cli import main\nmain(['--version'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "without torch, Python 3." in done.stdout


def test_what_needs_torch_says_so_and_writes_nothing(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("lars")
    before = everything_below(run.parent)
    for name, (code, told) in zip(NEEDING, outcomes([*NEEDING.values()], run, tmp_path), strict=True):
        assert (name, code) == (name, 2), told
        assert told == f"Error: tvlars-probe {name} needs torch: pip install 'tvlars-probe[train]'\n"
    assert everything_below(run.parent) == before
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["record", "LARS", "sharpness", "doctor", "describe", "SharpnessProbe"])
def test_names_that_need_torch_say_so(name: str) -> None:
    code = f"{REFUSING}\ntry:\n    tvlars_probe.{name}\nexcept ImportError as e:\n    print(type(e).__name__, e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = f"tvlars_probe.{name} needs torch: pip install 'tvlars-probe[train]'"
    assert done.stdout == f"MissingExtraError {told}\n"


def test_other_missing_modules_are_no_matter_of_the_extra() -> None:
    assert missing_extra("this", ModuleNotFoundError(name="polars")) is None
    assert missing_extra("this", ModuleNotFoundError()) is None
    assert str(missing_extra("this", ModuleNotFoundError(name="torch.nn"))).startswith("this needs torch: pip install")
