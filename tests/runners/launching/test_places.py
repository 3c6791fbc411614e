"""Places that can't be written to, for real: a read-only mount where one may be made, else a user without rights."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TRAIN = ("train", "--devices", "cpu", "--limit", "64", "--bs", "32", "--epochs", "1", "--run-dir")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write below ``folder``, root neither where it may mount."""
    bound = os.geteuid() == 0 and not any(
        subprocess.run(["mount", *words, str(folder)], capture_output=True, check=False).returncode
        for words in (["--bind", str(folder)], ["-o", "remount,bind,ro"])
    )
    if not bound:
        folder.chmod(0o500)
    try:
        yield
    finally:
        if bound:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            folder.chmod(0o700)


def test_a_read_only_place_is_refused_before_anything_starts_and_its_runs_can_be_read(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    assert cli(*TRAIN, folder / "r").code == 0
    manifest = (folder / "r" / "run.json").read_text()
    (folder / "r" / "run.json").write_text(manifest.replace('"completed"', '"interrupted"'))
    before = sorted(folder.rglob("*"))
    with read_only(folder):
        for words in ((*TRAIN, folder / "new"), ("train", "--resume", folder / "r")):
            refused = cli(*words)
            assert refused.code == 2
            assert f"can't write to {folder}" in refused.err
            assert len(refused.err.splitlines()) == 1
        repaired = cli("check", folder / "r", "--repair")
        assert repaired.code == 0, repaired.err  # there is nothing to repair
        assert cli("show", folder / "r").code == 0
    assert sorted(folder.rglob("*")) == before
