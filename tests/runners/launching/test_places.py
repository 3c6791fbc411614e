"""Places that can't be written to, for real: a read-only mount where one may be made, else a user without rights."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tvlars_probe", *words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_read_only_place_is_refused_before_anything_starts_and_its_runs_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    assert run(*TRAIN, str(folder / "r"), cwd=tmp_path).returncode == 0
    manifest = (folder / "r" / "run.json").read_text()
    (folder / "r" / "run.json").write_text(manifest.replace('"completed"', '"interrupted"'))
    before = sorted(folder.rglob("*"))
    with read_only(folder):
        for words in ((*TRAIN, str(folder / "new")), ("train", "--resume", str(folder / "r"))):
            refused = run(*words, cwd=tmp_path)
            assert refused.returncode == 2
            assert f"can't write to {folder}" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
        repaired = run("check", str(folder / "r"), "--repair", cwd=tmp_path)
        assert repaired.returncode == 0, repaired.stderr  # there is nothing to repair
        assert run("show", str(folder / "r"), cwd=tmp_path).returncode == 0
    assert sorted(folder.rglob("*")) == before
