"""Only plain files of no more than so many bytes are read."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tvlars_probe.admission.files import below, open_plain, read_plain
from tvlars_probe.errors import RefusedFileError
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import find_runs

if TYPE_CHECKING:
    from pathlib import Path


def test_a_plain_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(RefusedFileError, match=r"f is refused: it has 5 bytes, of 4 that it can have"):
        read_plain(path, 4)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "link to a fifo"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = tmp_path / "f"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("f")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path if kind == "fifo" else tmp_path / "g")
        if kind != "fifo":
            path.symlink_to(tmp_path / "g")
    for attempt in (lambda: read_plain(path, 10), lambda: open_plain(path)):
        with pytest.raises(RefusedFileError, match="it is no plain file"):
            attempt()


def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "f")
    monkeypatch.setattr("tvlars_probe.admission.files.refuse_special", lambda path: None)
    with pytest.raises(RefusedFileError, match="it is no plain file"):
        open_plain(tmp_path / "f")


def test_what_the_system_refuses_stays_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "f", 1)


def test_folders_that_nest_deeper_than_the_stack_are_walked(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(1100):
        here /= "a"
        here.mkdir()
    Manifest(run_id="r").save(here)
    assert len([*below(tmp_path)]) == 1101
    assert [*find_runs(tmp_path)] == [here]
    (here / "run.json").unlink()
    while here != tmp_path:  # pytest's own removal goes down the stack
        here.rmdir()
        here = here.parent


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert {*below(tmp_path)} == {tmp_path / "a", tmp_path / "a" / "up"}
