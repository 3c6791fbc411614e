from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest


def test_the_file_is_a_sweep_as_it_is_and_with_every_setting_that_it_names(cli: Any) -> None:
    done = cli("init")
    assert (done.code, done.out) == (
        0, "Written: sweep.toml\nChange it, then: tvlars-probe sweep sweep.toml\n",
    )  # fmt: skip
    shown = cli("sweep", "sweep.toml", "--dry-run")
    assert shown.code == 0, shown.err
    axes = tomllib.loads(Path("sweep.toml").read_text())["grid"]
    expected = 1
    for values in axes.values():
        expected *= len(values)
    assert len(shown.out.splitlines()) == expected == 12
    # What is commented out is possible, too: each such line has a setting and its comment.
    lines = Path("sweep.toml").read_text().splitlines()
    Path("all.toml").write_text(
        "\n".join(line[2:] if line.startswith("# ") and " = " in line else line for line in lines)
    )
    assert len(tomllib.loads(Path("all.toml").read_text())["settings"]) == 7
    done = cli("sweep", "all.toml", "--dry-run")
    assert done.code == 0, done.err
    assert "--val 0.1 --sharpness-every log --devices 0 1 " in done.out


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("mine.toml", "mine.toml is there already, and is left as it is: name another file"),
        ("mine.txt", "a sweep is a TOML file: name mine.txt with the suffix .toml"),
        ("no/where.toml", "there is no folder no to write where.toml into"),
        ("folder.toml", "folder.toml is a folder"),
    ],
)
def test_nothing_is_overwritten(cli: Any, file: str, message: str) -> None:
    Path("mine.toml").write_text("mine")
    Path("folder.toml").mkdir()
    done = cli("init", file)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert Path("mine.toml").read_text() == "mine"
    assert not Path("mine.txt").exists()
