"""Grids from files: what they may cost, and what is none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe.admission import limits
from tvlars_probe.errors import UserError
from tvlars_probe.runners.sweeps.grid import Grid, read_grid

if TYPE_CHECKING:
    from pathlib import Path


def test_a_grid_of_too_many_points_is_refused_with_its_sizes() -> None:
    ten = tuple(map(str, range(10)))
    assert Grid(axes=dict.fromkeys("abcd", ten))
    with pytest.raises(UserError, match=r"the grid has 1,000,000,000,000 points \(10 of a, 10 of b, .*of 10,000"):
        Grid(axes=dict.fromkeys("abcdefghijkl", ten))


def test_axes_of_a_file_and_of_the_command_line_count_together() -> None:
    many = tuple(map(str, range(limits.GRID_POINTS)))
    with pytest.raises(UserError, match="points"):
        Grid(axes={"lr": many}) | Grid(axes={"seed": ("0", "1")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = " + "[" * 30_000, "nests 30,000 deep"),
        ("[grid]\nlr = [" + "9" * 5000 + "]", "is not a TOML file"),
        ("[grid]\nlr = [0x" + "f" * 5000 + "]", "an integer of thousands of digits"),
        ("# " + "x" * (1 << 16), "it has 65,538 bytes"),
        (b"\xff\xfe", "is not a TOML file"),
        ("[grid]\nlr = ['\x00']", "is not a TOML file"),
    ],
    ids=["deep", "long integer", "long hexadecimal", "long", "no UTF-8", "null byte"],
)
def test_what_is_no_grid_is_refused_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "g.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_grid(str(path))
    assert str(path) in str(caught.value)


def test_a_fifo_is_no_grid_and_a_folder_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("g.toml")
    with pytest.raises(UserError, match="it is no plain file"):
        read_grid("g.toml")
    (tmp_path / "classification-512").mkdir()
    assert read_grid("classification-512").axes


@pytest.mark.parametrize("option", ["data-dir", "run-dir", "resume"])
def test_a_null_character_in_a_path_is_refused(option: str, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(f'[settings]\n{option} = "a\\u0000b"\n[grid]\nlr = [1.0]\n')
    done = cli("sweep", "g.toml", "--dry-run")
    assert done.code == 2
    assert "holds a null character" in done.err
