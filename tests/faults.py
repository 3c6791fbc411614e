"""Disks that are full when the test says so."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from typing import TYPE_CHECKING, Any

from tvlars_probe.traces import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


class SmallDisk:
    """A folder on a small tmpfs of its own; filled, every write into it fails with ENOSPC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / ".filler"

    def fill(self) -> None:
        """Leave no byte."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


class Quota(SmallDisk):
    """Where nothing may be mounted: files of this process may not grow, and every write fails with EFBIG."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@contextlib.contextmanager
def small_disk(folder: Path, kind: str) -> Iterator[SmallDisk]:
    """A disk at ``folder``: "tmpfs" where one may be mounted, else "quota" in its place."""
    folder.mkdir()
    mounted = kind == "tmpfs" and _mount(folder)
    disk = SmallDisk(folder) if mounted else Quota(folder)
    try:
        yield disk
    finally:
        disk.free()
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Writes:
    """Counts the files that are written, and fills the disk just before one of them.

    Attributes:
        names: of the files written, in order.
        failed: the one that met a full disk.
    """

    def __init__(self, patches: pytest.MonkeyPatch, disk: SmallDisk, full_at: int | None) -> None:
        self.names: list[str] = []
        self.failed: str | None = None
        write = files.replace_file

        def counted(path: Path, fill: Any, **further: Any) -> None:
            if len(self.names) == full_at:
                self.failed = path.name
                disk.fill()
            self.names.append(path.name)
            write(path, fill, **further)

        for module in ("traces.parts", "traces.manifest", "runners.checkpoints.files"):
            patches.setattr(f"tvlars_probe.{module}.replace_file", counted)
